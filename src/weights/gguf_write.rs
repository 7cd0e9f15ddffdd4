//! Writes GGUF v3: the header here, then the data of its tensors in the header's order, each padded to [`ALIGNMENT`].

use super::gguf::{Kind, Metadata, Value, ggml_number};
use super::stored::StoredType;

/// The format's default; no key says so.
const ALIGNMENT: u64 = 32;

/// A tensor of a file to come.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    pub name: String,
    /// Outermost first.
    pub shape: Vec<u64>,
    pub stored: StoredType,
}

impl Planned {
    pub fn bytes(&self) -> u64 {
        self.shape.iter().product::<u64>() / self.stored.block_values() * self.stored.block_bytes()
    }

    /// Zeros that follow the data.
    pub fn padding(&self) -> Vec<u8> {
        vec![0; (self.bytes().next_multiple_of(ALIGNMENT) - self.bytes()) as usize]
    }
}

/// Everything before the data.
pub fn header(metadata: &Metadata, tensors: &[Planned]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        string(&mut out, key);
        pair(&mut out, value);
    }
    let mut offset = 0;
    for tensor in tensors {
        string(&mut out, &tensor.name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        out.extend(tensor.shape.iter().rev().flat_map(|extent| extent.to_le_bytes()));
        out.extend(ggml_number(tensor.stored).to_le_bytes());
        out.extend(u64::to_le_bytes(offset));
        offset += tensor.bytes().next_multiple_of(ALIGNMENT);
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT as usize), 0);
    out
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// The value's type and the value.
fn pair(out: &mut Vec<u8>, value: &Value) {
    let mut kind = |kind: Kind| out.extend((kind as u32).to_le_bytes());
    match value {
        Value::Int(of, n) => {
            kind(*of);
            let size = of.size().expect("a whole number has a size") as usize;
            out.extend(&n.to_le_bytes()[..size]);
        }
        // The reader keeps both widths as f64; what is an f32 was one.
        Value::Float(x) if (*x as f32) as f64 == *x => {
            kind(Kind::F32);
            out.extend((*x as f32).to_le_bytes());
        }
        Value::Float(x) => {
            kind(Kind::F64);
            out.extend(x.to_le_bytes());
        }
        Value::Bool(b) => {
            kind(Kind::Bool);
            out.push(*b as u8);
        }
        Value::Str(text) => {
            kind(Kind::Str);
            string(out, text);
        }
        Value::Strings(all) => {
            kind(Kind::Array);
            kind(Kind::Str);
            out.extend((all.len() as u64).to_le_bytes());
            all.iter().for_each(|text| string(out, text));
        }
        Value::Numbers(of, bytes) => {
            kind(Kind::Array);
            kind(*of);
            let size = of.size().expect("a number has a size");
            out.extend((bytes.len() as u64 / size).to_le_bytes());
            out.extend(bytes);
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Str(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Value {
        Value::Str(text)
    }
}

impl From<u32> for Value {
    fn from(n: u32) -> Value {
        Value::Int(Kind::U32, n as i128)
    }
}

impl From<f32> for Value {
    fn from(x: f32) -> Value {
        Value::Float(x as f64)
    }
}

impl From<bool> for Value {
    fn from(b: bool) -> Value {
        Value::Bool(b)
    }
}

impl From<&[i32]> for Value {
    fn from(numbers: &[i32]) -> Value {
        Value::Numbers(Kind::I32, numbers.iter().flat_map(|n| n.to_le_bytes()).collect())
    }
}

impl From<&[f32]> for Value {
    fn from(numbers: &[f32]) -> Value {
        Value::Numbers(Kind::F32, numbers.iter().flat_map(|x| x.to_le_bytes()).collect())
    }
}
