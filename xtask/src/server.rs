//! A static file server on the loopback interface. It speaks as much HTTP/1.1 as that takes: a thread a connection, one
//! request each.

use crate::shell::Outcome;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

const LONGEST_HEAD: u64 = 64 << 10;
/// A connection that sends nothing for so long is let go: browsers open some in advance and never use them.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Server {
    listener: TcpListener,
    folder: PathBuf,
    port: u16,
}

impl Server {
    /// Port 0 takes any free port.
    pub fn bind(folder: PathBuf, port: u16) -> Outcome<Self> {
        let listener = TcpListener::bind(("127.0.0.1", port))
            .map_err(|error| format!("cannot serve from 127.0.0.1:{port}: {error} (another port: --port P)"))?;
        let port = listener.local_addr()?.port();
        Ok(Server { listener, folder, port })
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }

    /// Answers requests for as long as the process lives.
    pub fn serve(self) {
        for stream in self.listener.incoming().flatten() {
            let folder = self.folder.clone();
            // A browser that hangs up in the middle of an answer is not our failure.
            std::thread::spawn(move || drop(answer(stream, &folder)));
        }
    }
}

fn answer(stream: TcpStream, folder: &Path) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let Some(request) = Request::read(&mut BufReader::new(&stream))? else { return Ok(()) };
    if request.method != "GET" {
        return respond(&stream, "405 Method Not Allowed", "text/plain", "", b"");
    }
    match file_of(folder, &request.path) {
        Some(file) => respond(&stream, "200 OK", mime(&file), &policy(folder, &file), &std::fs::read(&file)?),
        None => respond(&stream, "404 Not Found", "text/plain", "", b"not found"),
    }
}

fn respond(mut stream: &TcpStream, status: &str, mime: &str, policy: &str, body: &[u8]) -> io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {mime}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
         Content-Security-Policy: {policy}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)
}

/// What a document may do stands in its own <meta>; everything else, workers above all, gets what the front page may.
fn policy(folder: &Path, file: &Path) -> String {
    let document =
        if file.extension().is_some_and(|extension| extension == "html") { file } else { &folder.join("index.html") };
    policy_in(&std::fs::read_to_string(document).unwrap_or_default()).unwrap_or_default()
}

fn policy_in(html: &str) -> Option<String> {
    let (_, behind) = html.split_once("http-equiv=\"Content-Security-Policy\"")?;
    let (_, value) = behind.split_once('>')?.0.split_once("content=\"")?;
    Some(value.split_once('"')?.0.split_whitespace().collect::<Vec<_>>().join(" "))
}

#[derive(Debug, PartialEq)]
struct Request {
    method: String,
    /// Without the query.
    path: String,
}

impl Request {
    /// Reads the head; None where nothing sensible came.
    fn read(reader: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut lines = reader.take(LONGEST_HEAD).lines();
        let first = lines.next().transpose()?.unwrap_or_default();
        for line in lines {
            if line?.is_empty() {
                break;
            }
        }
        let mut words = first.split(' ');
        let (Some(method), Some(target)) = (words.next(), words.next()) else { return Ok(None) };
        let path = target.split(['?', '#']).next().unwrap_or_default();
        Ok(Some(Request { method: method.into(), path: path.into() }))
    }
}

/// The file a URL path names, never one outside the folder.
fn file_of(folder: &Path, path: &str) -> Option<PathBuf> {
    let relative = Path::new(path.strip_prefix('/')?);
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    let file = folder.join(if path == "/" { Path::new("index.html") } else { relative });
    (plain && file.is_file()).then_some(file)
}

fn mime(file: &Path) -> &'static str {
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("json") => "application/json",
        Some("jsonl" | "md" | "ts") => "text/plain; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        Some("webmanifest") => "application/manifest+json",
        Some("wasm") => "application/wasm",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_the_folder() {
        let folder = std::env::temp_dir().join(format!("luthier-server-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("pkg")).unwrap();
        for name in ["index.html", "pkg/a.js"] {
            std::fs::write(folder.join(name), name).unwrap();
        }
        assert_eq!(file_of(&folder, "/"), Some(folder.join("index.html")));
        assert_eq!(file_of(&folder, "/pkg/a.js"), Some(folder.join("pkg/a.js")));
        for path in ["", "index.html", "/pkg", "/no", "/../etc/passwd", "/pkg/../../x", "//etc/passwd", "/./../x"] {
            assert_eq!(file_of(&folder, path), None, "{path}");
        }
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn requests() {
        let read = |text: &str| Request::read(&mut text.as_bytes()).unwrap();
        let post = read("POST /a?x HTTP/1.1\r\nHost: a\r\n\r\n{}");
        assert_eq!(post, Some(Request { method: "POST".into(), path: "/a".into() }));
        assert_eq!(read(""), None);
        assert_eq!(read("\r\n\r\n"), None);
    }

    #[test]
    fn the_policy_is_that_of_the_document() {
        let meta =
            "<meta\n  http-equiv=\"Content-Security-Policy\"\n content=\"default-src 'none';\n  img-src 'self'\" />";
        assert_eq!(policy_in(meta).unwrap(), "default-src 'none'; img-src 'self'");
        assert_eq!(policy_in("<meta charset=\"utf-8\" />"), None);
    }

    #[test]
    fn answers_over_a_socket() {
        let folder = std::env::temp_dir().join(format!("luthier-answers-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let page = |policy| format!("<meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">");
        std::fs::write(folder.join("index.html"), page("default-src 'self'")).unwrap();
        std::fs::write(folder.join("models.html"), page("connect-src https:")).unwrap();
        std::fs::write(folder.join("worker.js"), "0").unwrap();
        let server = Server::bind(folder.clone(), 0).unwrap();
        let address = ("127.0.0.1", server.port);
        std::thread::spawn(move || server.serve());
        let ask = |request: &str| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        };
        let front = ask("GET /?run=cpu HTTP/1.1\r\n\r\n");
        assert!(front.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/html"), "{front}");
        assert!(front.ends_with(&format!("\r\n\r\n{}", page("default-src 'self'"))), "{front}");
        let policy = |path: &str| ask(&format!("GET {path} HTTP/1.1\r\n\r\n"));
        for (path, expected) in [("/", "default-src 'self'"), ("/worker.js", "default-src 'self'")] {
            assert!(policy(path).contains(&format!("\r\nContent-Security-Policy: {expected}\r\n")), "{path}");
        }
        assert!(policy("/models.html").contains("\r\nContent-Security-Policy: connect-src https:\r\n"));
        assert!(ask("GET /no HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404"));
        assert!(ask("DELETE / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405"));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn mime_types() {
        assert_eq!(mime(Path::new("a.wasm")), "application/wasm");
        assert!(mime(Path::new("a.js")).starts_with("text/javascript"));
        assert_eq!(mime(Path::new("model.safetensors")), "application/octet-stream");
    }
}
