//! A static file server on the loopback interface, and `/report`, through which a page run by us tells how it is doing.
//! It speaks as much HTTP/1.1 as that takes: a thread a connection, one request each.

use crate::shell::Outcome;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Component, Path, PathBuf};
use std::sync::mpsc::Sender;
use std::time::Duration;

/// What the page may do: only what came from this server, wasm included. Its data has nowhere to go.
const POLICY: &str = "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; img-src 'self' data:; \
                      base-uri 'none'; form-action 'none'";
const LONGEST_HEAD: u64 = 64 << 10;
const LONGEST_REPORT: u64 = 1 << 20;
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

    pub fn url(&self, query: &str) -> String {
        format!("http://127.0.0.1:{}/{query}", self.port)
    }

    /// Answers requests for as long as the process lives; reported lines go to `reports`.
    pub fn serve(self, reports: Sender<String>) {
        for stream in self.listener.incoming().flatten() {
            let (folder, reports) = (self.folder.clone(), reports.clone());
            // A browser that hangs up in the middle of an answer is not our failure.
            std::thread::spawn(move || drop(answer(stream, &folder, &reports)));
        }
    }
}

fn answer(stream: TcpStream, folder: &Path, reports: &Sender<String>) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(&stream);
    let Some(request) = Request::read(&mut reader)? else { return Ok(()) };
    match (request.method.as_str(), request.path.as_str()) {
        ("POST", "/report") => {
            let mut body = String::new();
            reader.take(request.length.min(LONGEST_REPORT)).read_to_string(&mut body)?;
            body.lines().for_each(|line| drop(reports.send(line.to_owned())));
            respond(&stream, "204 No Content", "text/plain", b"")
        }
        ("GET", path) => match file_of(folder, path) {
            Some(file) => respond(&stream, "200 OK", mime(&file), &std::fs::read(&file)?),
            None => respond(&stream, "404 Not Found", "text/plain", b"not found"),
        },
        _ => respond(&stream, "405 Method Not Allowed", "text/plain", b""),
    }
}

fn respond(mut stream: &TcpStream, status: &str, mime: &str, body: &[u8]) -> io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {mime}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
         Content-Security-Policy: {POLICY}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)
}

#[derive(Debug, PartialEq)]
struct Request {
    method: String,
    /// Without the query.
    path: String,
    /// Of the body.
    length: u64,
}

impl Request {
    /// Reads the head, leaving the reader at the body; None where nothing sensible came.
    fn read(reader: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut lines = reader.take(LONGEST_HEAD).lines();
        let first = lines.next().transpose()?.unwrap_or_default();
        let mut length = 0;
        for line in lines {
            let line = line?;
            match line.split_once(':') {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.trim().parse().unwrap_or(0)
                }
                Some(_) => {}
                None => break, // the empty line that ends the head
            }
        }
        let mut words = first.split(' ');
        let (Some(method), Some(target)) = (words.next(), words.next()) else { return Ok(None) };
        let path = target.split(['?', '#']).next().unwrap_or_default();
        Ok(Some(Request { method: method.into(), path: path.into(), length }))
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
        let post = read("POST /report?x HTTP/1.1\r\nHost: a\r\ncontent-length: 12\r\n\r\n{}");
        assert_eq!(post, Some(Request { method: "POST".into(), path: "/report".into(), length: 12 }));
        assert_eq!(read(""), None);
        assert_eq!(read("\r\n\r\n"), None);
    }

    #[test]
    fn answers_over_a_socket() {
        let folder = std::env::temp_dir().join(format!("luthier-answers-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("index.html"), "hello").unwrap();
        let server = Server::bind(folder.clone(), 0).unwrap();
        let address = ("127.0.0.1", server.port);
        let (sender, reports) = std::sync::mpsc::channel();
        std::thread::spawn(move || server.serve(sender));
        let ask = |request: &str| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        };
        let page = ask("GET /?run=cpu HTTP/1.1\r\n\r\n");
        assert!(
            page.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/html") && page.ends_with("\r\n\r\nhello"),
            "{page}"
        );
        assert!(ask("GET /no HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404"));
        assert!(ask("DELETE / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405"));
        assert!(ask("POST /report HTTP/1.1\r\nContent-Length: 3\r\n\r\na\nb").starts_with("HTTP/1.1 204"));
        assert_eq!((reports.recv().unwrap(), reports.recv().unwrap()), ("a".into(), "b".into()));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn mime_types() {
        assert_eq!(mime(Path::new("a.wasm")), "application/wasm");
        assert!(mime(Path::new("a.js")).starts_with("text/javascript"));
        assert_eq!(mime(Path::new("model.safetensors")), "application/octet-stream");
    }
}
