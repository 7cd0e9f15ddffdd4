//! Downloads from a small server of our own: whole, resumed, cut short, damaged.

use super::support::*;
use luthier::Result;
use luthier::weights::hub::{self, Place};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};

fn body() -> Vec<u8> {
    (0..300_000u32).map(|i| (i * 7 % 251) as u8).collect()
}

const BODY_SHA256: &str = "b1cf7538cf80d01efe3e0b8e45dc930048a138c7b6f8c4aff08f478e4695e631";

/// What the server does with a request.
#[derive(Clone, Copy)]
enum Manner {
    Ranges,
    IgnoresRanges,
    /// Closes the connection after so many bytes of the body.
    CutsAt(usize),
    Answers(u16),
}

/// Serves one request after another, each in its manner; reports the range headers it saw.
fn serve(manners: Vec<Manner>) -> (String, Receiver<Option<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/file", listener.local_addr().unwrap());
    let (seen, ranges) = channel();
    std::thread::spawn(move || {
        for manner in manners {
            let (mut stream, _) = listener.accept().unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let head: Vec<String> = lines.map(|l| l.unwrap()).take_while(|l| !l.is_empty()).collect();
            let range = head.iter().find_map(|l| l.to_ascii_lowercase().strip_prefix("range: ").map(String::from));
            let _ = seen.send(range.clone());
            let _ = stream.write_all(&answer(manner, range.as_deref()));
        }
    });
    (url, ranges)
}

fn answer(manner: Manner, range: Option<&str>) -> Vec<u8> {
    let body = body();
    let start = range.and_then(|r| r.strip_prefix("bytes=")?.trim_end_matches('-').parse::<usize>().ok());
    let (status, from, extra) = match (manner, start) {
        (Manner::Answers(status), _) => {
            return format!("HTTP/1.1 {status} No\r\ncontent-length: 0\r\n\r\n").into_bytes();
        }
        (Manner::IgnoresRanges, _) | (_, None) => ("200 OK", 0, String::new()),
        (_, Some(start)) if start >= body.len() => {
            return b"HTTP/1.1 416 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_vec();
        }
        (_, Some(start)) => {
            let range = format!("content-range: bytes {start}-{}/{}\r\n", body.len() - 1, body.len());
            ("206 Partial Content", start, range)
        }
    };
    let sent = if let Manner::CutsAt(n) = manner { n } else { body.len() };
    let length = body.len() - from;
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n{extra}connection: close\r\n\r\n");
    [head.as_bytes(), &body[from..sent]].concat()
}

fn download(url: &str, target: &Path, sha256: Option<&str>) -> Result<u64> {
    let mut last = 0;
    hub::download(url, target, sha256, &mut |p| {
        assert!(p.total.is_none_or(|total| p.done <= total));
        last = p.done;
    })?;
    Ok(last)
}

#[test]
fn a_whole_file_is_checked_and_named() {
    let folder = TempDir::new("hub-whole");
    let target = folder.0.join("sub").join("file");
    let (url, ranges) = serve(vec![Manner::Ranges]);
    assert_eq!(download(&url, &target, Some(BODY_SHA256)).unwrap(), 300_000);
    assert_eq!(std::fs::read(&target).unwrap(), body());
    assert_eq!(ranges.recv().unwrap(), None);
    // There already: nobody is asked (the server answers one request only).
    download(&url, &target, Some(BODY_SHA256)).unwrap();
    assert_eq!(std::fs::read_dir(folder.0.join("sub")).unwrap().count(), 1);
}

#[test]
fn a_cut_download_goes_on_where_it_stopped() {
    let folder = TempDir::new("hub-resume");
    let target = folder.0.join("file");
    let (url, ranges) = serve(vec![Manner::CutsAt(100_000), Manner::Ranges]);
    let refused = download(&url, &target, Some(BODY_SHA256)).unwrap_err();
    assert!(refused.to_string().contains("after 100000 bytes"), "{refused}");
    assert!(refused.hint().contains("again"));
    assert_eq!(folder.names(), ["file.part"]);
    download(&url, &target, Some(BODY_SHA256)).unwrap();
    assert_eq!(ranges.iter().collect::<Vec<_>>(), [None, Some("bytes=100000-".to_string())]);
    assert_eq!(std::fs::read(&target).unwrap(), body());
    assert_eq!(folder.names(), ["file"]);
}

#[test]
fn a_server_without_ranges_sends_all_again() {
    let folder = TempDir::new("hub-norange");
    folder.write("file.part", [9; 1000]);
    let (url, _ranges) = serve(vec![Manner::IgnoresRanges]);
    let target = folder.0.join("file");
    download(&url, &target, Some(BODY_SHA256)).unwrap();
    assert_eq!(std::fs::read(&target).unwrap(), body());
}

#[test]
fn a_part_as_long_as_the_file_is_fetched_anew() {
    let folder = TempDir::new("hub-416");
    folder.write("file.part", [9; 300_000]);
    let (url, _ranges) = serve(vec![Manner::Ranges, Manner::Ranges]);
    let target = folder.0.join("file");
    download(&url, &target, Some(BODY_SHA256)).unwrap();
    assert_eq!(std::fs::read(&target).unwrap(), body());
}

#[test]
fn a_wrong_checksum_leaves_nothing() {
    let folder = TempDir::new("hub-checksum");
    let (url, _ranges) = serve(vec![Manner::Ranges]);
    let refused = download(&url, &folder.0.join("file"), Some("00ff")).unwrap_err();
    assert!(refused.to_string().contains("SHA-256") && refused.to_string().contains("00ff"), "{refused}");
    assert!(folder.names().is_empty());
}

#[test]
fn a_server_that_refuses_is_quoted() {
    for (status, words) in [(401, "token"), (404, "by hand"), (500, "later")] {
        let folder = TempDir::new(&format!("hub-{status}"));
        let (url, _ranges) = serve(vec![Manner::Answers(status)]);
        let refused = download(&url, &folder.0.join("file"), None).unwrap_err();
        assert!(refused.to_string().contains(&status.to_string()), "{refused}");
        assert!(refused.hint().contains(words), "{}", refused.hint());
    }
    let folder = TempDir::new("hub-nobody");
    let refused = download("http://127.0.0.1:1/file", &folder.0.join("file"), None).unwrap_err();
    assert_eq!(refused.code(), "io");
}

#[test]
fn paths_win_and_unknown_names_get_the_closest() {
    let folder = TempDir::new("hub-resolve");
    let path = folder.0.to_str().unwrap();
    assert_eq!(hub::resolve(path, &mut |_| ()).unwrap(), folder.0);
    let refused = hub::resolve("smolm2-135", &mut |_| ()).unwrap_err();
    assert!(refused.to_string().contains("did you mean 'smollm2-135m'"), "{refused}");
    assert!(refused.hint().contains("nano") && refused.hint().contains("smollm2-360m"), "{}", refused.hint());
}

#[test]
fn the_registry_is_well_formed() {
    for (name, model) in hub::registry() {
        assert!(!model.about.is_empty(), "{name}");
        let Place::Hub { repo, revision, files } = model.place else { continue };
        assert!(repo.split('/').count() == 2 && !revision.is_empty() && !files.is_empty(), "{name}");
        for file in files {
            assert!(!file.name.contains(['/', '\\']), "{name}: {}", file.name);
            assert!(file.sha256.is_none_or(|s| s.len() == 64 && s.bytes().all(|b| b.is_ascii_hexdigit())), "{name}");
        }
    }
}
