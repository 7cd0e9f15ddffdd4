//! A parser of Python expressions, as far as calls with literals need it: names, attributes, calls, subscripts,
//! strings, numbers, lists, tuples, sets, dictionaries, signs and arithmetic. No statements beyond `target =
//! expression`, no lambdas, comprehensions or f-strings: a model that answers with those did not answer with a call.

use std::ops::Range;

/// An expression and where it stands in its text.
#[derive(Clone, Debug, PartialEq)]
pub struct Expr {
    pub kind: Kind,
    pub span: Range<usize>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    Name(String),
    Text(String),
    Int(i128),
    Float(f64),
    Bool(bool),
    None,
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Set(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    Attribute(Box<Expr>, String),
    Subscript(Box<Expr>, Box<Expr>),
    Call { function: Box<Expr>, arguments: Vec<Argument> },
    Unary(char, Box<Expr>),
    Binary(Box<Expr>, &'static str, Box<Expr>),
}

/// An argument of a call; the name of an unpacked dictionary is `**`.
#[derive(Clone, Debug, PartialEq)]
pub struct Argument {
    pub name: Option<String>,
    pub value: Expr,
    pub span: Range<usize>,
}

/// `a = b = expression`, or the expression alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Statement {
    pub targets: Vec<Expr>,
    pub value: Expr,
}

impl Expr {
    pub fn text<'a>(&self, source: &'a str) -> &'a str {
        &source[self.span.clone()]
    }

    /// `a.b.c` of a name or a chain of attributes.
    pub fn dotted(&self) -> Option<String> {
        match &self.kind {
            Kind::Name(name) => Some(name.clone()),
            Kind::Attribute(of, name) => Some(format!("{}.{name}", of.dotted()?)),
            _ => None,
        }
    }
}

/// Deeper nesting is refused: the parser calls itself.
const DEEPEST: usize = 64;

/// The whole text as one expression; None where it is none.
pub fn expression(text: &str) -> Option<Expr> {
    let mut parser = Parser::new(text);
    let expr = parser.items_or_one()?;
    parser.space(true);
    (parser.at == text.len()).then_some(expr)
}

/// The whole text as statements, one a line or parted by semicolons.
pub fn statements(text: &str) -> Option<Vec<Statement>> {
    let mut parser = Parser::new(text);
    let mut all = Vec::new();
    loop {
        parser.between();
        if parser.at == text.len() {
            return Some(all);
        }
        all.push(parser.statement()?);
        parser.space(false);
        if !(parser.at == text.len() || parser.rest().starts_with([';', '\n', '\r', '#'])) {
            return None;
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
    /// Open brackets: inside them a line's end is white space.
    brackets: usize,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Parser<'a> {
        Parser { text, at: 0, depth: 0, brackets: 0 }
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    /// Passes white space and comments; line ends too where asked or inside brackets.
    fn space(&mut self, lines: bool) {
        let lines = lines || self.brackets > 0;
        loop {
            let rest = self.rest();
            let next = rest.trim_start_matches(|c: char| c == ' ' || c == '\t' || lines && (c == '\n' || c == '\r'));
            self.at += rest.len() - next.len();
            if !(lines && next.starts_with('#')) {
                return;
            }
            self.at += next.find('\n').unwrap_or(next.len());
        }
    }

    /// Passes what stands between statements.
    fn between(&mut self) {
        loop {
            self.space(true);
            if !self.rest().starts_with(';') {
                return;
            }
            self.at += 1;
        }
    }

    fn take(&mut self, token: &str) -> bool {
        self.space(false);
        let found = self.rest().starts_with(token);
        self.at += if found { token.len() } else { 0 };
        found
    }

    fn statement(&mut self) -> Option<Statement> {
        let mut targets = Vec::new();
        let mut value = self.items_or_one()?;
        loop {
            self.space(false);
            if !self.rest().starts_with('=') || self.rest().starts_with("==") {
                return Some(Statement { targets, value });
            }
            self.at += 1;
            targets.push(std::mem::replace(&mut value, self.items_or_one()?));
        }
    }

    /// An expression, or a tuple without parentheses.
    fn items_or_one(&mut self) -> Option<Expr> {
        self.space(true);
        let start = self.at;
        let first = self.expr()?;
        let mut items = vec![first];
        let mut comma = false;
        while self.take(",") {
            comma = true;
            self.space(false);
            if self.rest().is_empty() || self.rest().starts_with(['\n', '=', ';']) {
                break;
            }
            items.push(self.expr()?);
        }
        if !comma {
            return items.pop();
        }
        let end = items.last()?.span.end;
        Some(Expr { kind: Kind::Tuple(items), span: start..end })
    }

    fn expr(&mut self) -> Option<Expr> {
        self.depth += 1;
        let expr = if self.depth > DEEPEST { None } else { self.binary(0) };
        self.depth -= 1;
        expr
    }

    /// Operators by how tightly they bind, loosest first.
    fn binary(&mut self, level: usize) -> Option<Expr> {
        const LEVELS: [&[&str]; 2] = [&["+", "-"], &["//", "/", "%", "*"]];
        let Some(operators) = LEVELS.get(level) else { return self.unary() };
        let mut left = self.binary(level + 1)?;
        loop {
            self.space(false);
            let rest = self.rest();
            let found = operators.iter().find(|op| rest.starts_with(**op) && !rest.starts_with("**"));
            let Some(op) = found else { return Some(left) };
            self.at += op.len();
            let right = self.binary(level + 1)?;
            let span = left.span.start..right.span.end;
            left = Expr { kind: Kind::Binary(Box::new(left), op, Box::new(right)), span };
        }
    }

    fn unary(&mut self) -> Option<Expr> {
        self.space(false);
        let start = self.at;
        if let Some(sign) = self.rest().chars().next().filter(|c| "+-~".contains(*c)) {
            self.at += 1;
            self.depth += 1;
            let of = if self.depth > DEEPEST { None } else { self.unary() };
            self.depth -= 1;
            let of = of?;
            let span = start..of.span.end;
            return Some(Expr { kind: Kind::Unary(sign, Box::new(of)), span });
        }
        let base = self.postfix()?;
        if !self.take("**") {
            return Some(base);
        }
        let power = self.unary()?;
        let span = base.span.start..power.span.end;
        Some(Expr { kind: Kind::Binary(Box::new(base), "**", Box::new(power)), span })
    }

    /// An atom with attributes, calls and subscripts behind it.
    fn postfix(&mut self) -> Option<Expr> {
        let mut expr = self.atom()?;
        loop {
            let start = expr.span.start;
            self.space(false);
            let kind = match self.rest().as_bytes().first() {
                Some(b'.') => {
                    self.at += 1;
                    self.space(false);
                    Kind::Attribute(Box::new(expr), self.name()?)
                }
                Some(b'(') => Kind::Call { function: Box::new(expr), arguments: self.arguments()? },
                Some(b'[') => {
                    self.open();
                    let index = self.expr()?;
                    self.close("]")?;
                    Kind::Subscript(Box::new(expr), Box::new(index))
                }
                _ => return Some(expr),
            };
            expr = Expr { kind, span: start..self.at };
        }
    }

    fn open(&mut self) {
        self.at += 1;
        self.brackets += 1;
    }

    fn close(&mut self, bracket: &str) -> Option<()> {
        self.take(bracket).then(|| self.brackets -= 1)
    }

    fn arguments(&mut self) -> Option<Vec<Argument>> {
        self.open();
        let mut all = Vec::new();
        loop {
            if self.take(")") {
                self.brackets -= 1;
                return Some(all);
            }
            all.push(self.argument()?);
            if !self.take(",") {
                self.close(")")?;
                return Some(all);
            }
        }
    }

    fn argument(&mut self) -> Option<Argument> {
        self.space(false);
        let start = self.at;
        let mut named = self.name().filter(|_| self.take("=") && !self.rest().starts_with('='));
        if named.is_none() {
            self.at = start;
            named = self.take("**").then(|| "**".into());
            // The items of an unpacked list have no names.
            let _ = named.is_none() && self.take("*");
        }
        let value = self.expr()?;
        Some(Argument { name: named, span: start..value.span.end, value })
    }

    fn name(&mut self) -> Option<String> {
        let rest = self.rest();
        let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
        let name = &rest[..end];
        if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
            return None;
        }
        self.at += end;
        Some(name.to_string())
    }

    fn atom(&mut self) -> Option<Expr> {
        self.space(false);
        let start = self.at;
        let kind = match self.rest().chars().next()? {
            '(' => return self.parenthesis(),
            '[' => {
                self.open();
                Kind::List(self.items("]")?)
            }
            '{' => self.braces()?,
            '\'' | '"' => Kind::Text(self.strings()?),
            c if c.is_ascii_digit() || c == '.' => self.number()?,
            _ => self.word()?,
        };
        Some(Expr { kind, span: start..self.at })
    }

    fn parenthesis(&mut self) -> Option<Expr> {
        let start = self.at;
        self.open();
        if self.take(")") {
            self.brackets -= 1;
            return Some(Expr { kind: Kind::Tuple(Vec::new()), span: start..self.at });
        }
        let first = self.expr()?;
        if self.take(",") {
            let items = [vec![first], self.items(")")?].concat();
            return Some(Expr { kind: Kind::Tuple(items), span: start..self.at });
        }
        self.close(")")?;
        Some(Expr { span: start..self.at, ..first })
    }

    /// Expressions up to the closing bracket.
    fn items(&mut self, end: &str) -> Option<Vec<Expr>> {
        let mut all = Vec::new();
        loop {
            if self.take(end) {
                self.brackets -= 1;
                return Some(all);
            }
            all.push(self.expr()?);
            if !self.take(",") {
                self.close(end)?;
                return Some(all);
            }
        }
    }

    fn braces(&mut self) -> Option<Kind> {
        self.open();
        if self.take("}") {
            self.brackets -= 1;
            return Some(Kind::Dict(Vec::new()));
        }
        let first = self.expr()?;
        if !self.take(":") {
            let rest = if self.take(",") { self.items("}")? } else { self.close("}").map(|()| Vec::new())? };
            return Some(Kind::Set([vec![first], rest].concat()));
        }
        let mut pairs = vec![(first, self.expr()?)];
        loop {
            let more = self.take(",");
            if self.take("}") {
                self.brackets -= 1;
                return Some(Kind::Dict(pairs));
            }
            if !more {
                return None;
            }
            let key = self.expr()?;
            if !self.take(":") {
                return None;
            }
            pairs.push((key, self.expr()?));
        }
    }

    fn word(&mut self) -> Option<Kind> {
        let name = self.name()?;
        if name.len() <= 2 && name.chars().all(|c| "rbuRBU".contains(c)) && self.rest().starts_with(['\'', '"']) {
            let raw = name.contains(['r', 'R']);
            return Some(Kind::Text(self.string(raw)?));
        }
        Some(match name.as_str() {
            "True" => Kind::Bool(true),
            "False" => Kind::Bool(false),
            "None" => Kind::None,
            "lambda" | "not" | "and" | "or" | "if" | "else" | "for" | "in" | "is" => return None,
            _ => Kind::Name(name),
        })
    }

    /// One string, or several beside one another, which are one.
    fn strings(&mut self) -> Option<String> {
        let mut text = self.string(false)?;
        loop {
            let end = self.at;
            self.space(false);
            if !self.rest().starts_with(['\'', '"']) {
                self.at = end;
                return Some(text);
            }
            text += &self.string(false)?;
        }
    }

    fn string(&mut self, raw: bool) -> Option<String> {
        let quote = &self.rest()[..1];
        let triple = self.rest().starts_with(&quote.repeat(3));
        let end = if triple { quote.repeat(3) } else { quote.to_string() };
        self.at += end.len();
        let mut text = String::new();
        loop {
            if self.rest().starts_with(&end) {
                self.at += end.len();
                return Some(text);
            }
            let c = self.rest().chars().next()?;
            self.at += c.len_utf8();
            match c {
                '\n' if !triple => return None,
                '\\' if raw => {
                    text.push(c);
                    let next = self.rest().chars().next()?;
                    self.at += next.len_utf8();
                    text.push(next);
                }
                '\\' => text += &self.escape()?,
                c => text.push(c),
            }
        }
    }

    fn escape(&mut self) -> Option<String> {
        let c = self.rest().chars().next()?;
        self.at += c.len_utf8();
        let digits = match c {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => 0,
        };
        if digits > 0 {
            let code = u32::from_str_radix(self.rest().get(..digits)?, 16).ok()?;
            self.at += digits;
            return char::from_u32(code).map(String::from);
        }
        Some(match c {
            '\n' => String::new(),
            'n' => "\n".into(),
            't' => "\t".into(),
            'r' => "\r".into(),
            '0' => "\0".into(),
            '\\' | '\'' | '"' => c.into(),
            other => format!("\\{other}"),
        })
    }

    fn number(&mut self) -> Option<Kind> {
        let rest = self.rest();
        let mut end = 0;
        for (i, c) in rest.char_indices() {
            let exponent = rest[..i].ends_with(['e', 'E']) && !rest.starts_with("0x") && (c == '+' || c == '-');
            if !(c.is_ascii_alphanumeric() || c == '_' || c == '.' || exponent) {
                break;
            }
            end = i + c.len_utf8();
        }
        let digits = rest[..end].replace('_', "");
        self.at += end;
        let radix = |prefix: &str, radix| {
            digits.to_lowercase().strip_prefix(prefix).and_then(|d| i128::from_str_radix(d, radix).ok())
        };
        if let Some(int) = radix("0x", 16).or_else(|| radix("0o", 8)).or_else(|| radix("0b", 2)) {
            return Some(Kind::Int(int));
        }
        if digits.chars().all(|c| c.is_ascii_digit()) {
            return digits.parse().map(Kind::Int).ok();
        }
        let plain = digits.chars().all(|c| c.is_ascii_digit() || "eE+-.".contains(c));
        digits.parse().map(Kind::Float).ok().filter(|_| plain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_with_literals() {
        let call = expression("a.b(1, x='it\\'s', y=[-2.5, None], z={'k': (1,)}, w=3 + 4 * 2,)").unwrap();
        let Kind::Call { function, arguments } = &call.kind else { panic!("{call:?}") };
        assert_eq!(function.dotted().unwrap(), "a.b");
        assert_eq!(arguments[1].value.kind, Kind::Text("it's".into()));
        assert_eq!(arguments.iter().filter(|a| a.name.is_some()).count(), 4);
        let text = "f(*[1], **{'k': 2})";
        let Kind::Call { arguments, .. } = expression(text).unwrap().kind else { panic!() };
        let shown: Vec<_> = arguments.iter().map(|a| (a.name.as_deref(), a.value.text(text))).collect();
        assert_eq!(shown, [(None, "[1]"), (Some("**"), "{'k': 2}")]);
        assert!(expression("f(1, 2").is_none() && expression("I cannot do that").is_none());
        assert!(expression(&"(".repeat(10_000)).is_none(), "nesting is limited");
        assert!(expression(&"-".repeat(10_000)).is_none());
    }

    #[test]
    fn statements_with_targets() {
        let text = "import_it = 1; model = torch.hub.load('a',\n 'b').eval()\nx";
        let all = statements(text).unwrap();
        assert_eq!(all.len(), 3);
        assert_eq!(all[1].targets[0].text(text), "model");
        assert_eq!(all[1].value.text(text), "torch.hub.load('a',\n 'b').eval()");
    }
}
