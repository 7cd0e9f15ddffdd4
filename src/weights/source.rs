//! Where bytes come from. A source is read by range, so that a model may be larger than memory, or than wasm's 4 GiB.

use super::malformed;
use crate::{Error, Result};
use std::sync::Arc;

#[derive(Clone, Debug)]
pub enum Source {
    #[cfg(not(target_arch = "wasm32"))]
    File {
        name: String,
        file: Arc<std::fs::File>,
        len: u64,
    },
    Bytes {
        name: String,
        bytes: Arc<[u8]>,
    },
    /// A file the user dropped on the page, or one from the browser's storage.
    #[cfg(target_arch = "wasm32")]
    Blob {
        name: String,
        blob: web_sys::Blob,
    },
    /// A file on a server that answers range requests.
    #[cfg(target_arch = "wasm32")]
    Url {
        url: String,
        len: u64,
    },
}

impl Source {
    pub fn bytes(name: impl Into<String>, bytes: impl Into<Arc<[u8]>>) -> Source {
        Source::Bytes { name: name.into(), bytes: bytes.into() }
    }

    #[cfg(not(target_arch = "wasm32"))]
    pub fn file(path: impl AsRef<std::path::Path>) -> Result<Source> {
        let name = path.as_ref().display().to_string();
        let file = std::fs::File::open(path.as_ref()).map_err(|e| Error::io(&name, e))?;
        let meta = file.metadata().map_err(|e| Error::io(&name, e))?;
        if meta.is_dir() {
            return Err(Error::Io { path: name, what: "is a folder, not a file".into(), hint: "name the file".into() });
        }
        Ok(Source::File { name, file: Arc::new(file), len: meta.len() })
    }

    /// A path, URL or plain file name: what error messages show.
    pub fn name(&self) -> &str {
        match self {
            #[cfg(not(target_arch = "wasm32"))]
            Source::File { name, .. } => name,
            Source::Bytes { name, .. } => name,
            #[cfg(target_arch = "wasm32")]
            Source::Blob { name, .. } => name,
            #[cfg(target_arch = "wasm32")]
            Source::Url { url, .. } => url,
        }
    }

    /// The last component of the name.
    pub fn file_name(&self) -> &str {
        let name = self.name().split(['?', '#']).next().unwrap_or_default();
        name.rsplit(['/', '\\']).next().unwrap_or(name)
    }

    pub fn len(&self) -> u64 {
        match self {
            #[cfg(not(target_arch = "wasm32"))]
            Source::File { len, .. } => *len,
            Source::Bytes { bytes, .. } => bytes.len() as u64,
            #[cfg(target_arch = "wasm32")]
            Source::Blob { blob, .. } => blob.size() as u64,
            #[cfg(target_arch = "wasm32")]
            Source::Url { len, .. } => *len,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Exactly `len` bytes from `offset`.
    pub async fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let end = offset.checked_add(len as u64).filter(|end| *end <= self.len());
        let Some(_end) = end else {
            let what = format!("{len} bytes wanted, but the file has {} bytes", self.len());
            return Err(malformed(self.name(), format!("byte {offset}"), what));
        };
        match self {
            #[cfg(not(target_arch = "wasm32"))]
            Source::File { name, file, .. } => read_file(file, offset, len).map_err(|e| Error::io(name, e)),
            Source::Bytes { bytes, .. } => Ok(bytes[offset as usize..offset as usize + len].to_vec()),
            #[cfg(target_arch = "wasm32")]
            Source::Blob { name, blob } => web::read_blob(name, blob, offset, _end).await,
            #[cfg(target_arch = "wasm32")]
            Source::Url { url, .. } => web::read_url(url, offset, len).await,
        }
    }

    /// The whole of a text file of at most `max` bytes.
    pub async fn text(&self, max: u64) -> Result<String> {
        if self.len() > max {
            return Err(malformed(self.name(), "length", format!("{} bytes; at most {max} are read", self.len())));
        }
        let bytes = self.read(0, self.len() as usize).await?;
        String::from_utf8(bytes)
            .map_err(|e| malformed(self.name(), format!("byte {}", e.utf8_error().valid_up_to()), "not UTF-8 text"))
    }
}

#[cfg(unix)]
fn read_file(file: &std::fs::File, offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    std::os::unix::fs::FileExt::read_exact_at(file, &mut bytes, offset)?;
    Ok(bytes)
}

#[cfg(windows)]
fn read_file(file: &std::fs::File, offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let mut done = 0;
    while done < len {
        match std::os::windows::fs::FileExt::seek_read(file, &mut bytes[done..], offset + done as u64)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => done += n,
        }
    }
    Ok(bytes)
}

/// Replaces `path` by `bytes`, or leaves it as it was: written aside, flushed to the disk, renamed.
#[cfg(not(target_arch = "wasm32"))]
pub fn atomic_write(path: impl AsRef<std::path::Path>, bytes: &[u8]) -> Result<()> {
    let path = path.as_ref();
    let mut aside = path.as_os_str().to_owned();
    aside.push(format!(".{}.tmp", std::process::id()));
    let aside = std::path::PathBuf::from(aside);
    let written =
        write_synced(&aside, bytes).and_then(|()| std::fs::rename(&aside, path)).and_then(|()| sync_folder(path));
    written.map_err(|e| {
        let _ = std::fs::remove_file(&aside); // the write's own error is the one to report
        Error::io(path.display().to_string(), e)
    })
}

#[cfg(not(target_arch = "wasm32"))]
fn write_synced(path: &std::path::Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = std::fs::File::create(path)?;
    std::io::Write::write_all(&mut file, bytes)?;
    file.sync_all()
}

/// A rename outlives a power cut only when the folder is on the disk too; Windows has no such call.
#[cfg(not(target_arch = "wasm32"))]
fn sync_folder(path: &std::path::Path) -> std::io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(std::path::Path::new("."));
    if cfg!(unix) { std::fs::File::open(folder)?.sync_all() } else { Ok(()) }
}

#[cfg(target_arch = "wasm32")]
mod web {
    use super::*;
    use js_sys::{Function, Promise, Reflect, Uint8Array};
    use wasm_bindgen::{JsCast, JsValue};
    use wasm_bindgen_futures::JsFuture;

    /// A server that ignores ranges sends the whole file: taken up to this size, refused above it.
    const SMALL: u64 = 16 << 20;

    impl Source {
        pub fn blob(name: impl Into<String>, blob: web_sys::Blob) -> Source {
            Source::Blob { name: name.into(), blob }
        }

        /// Asks the server for the first byte, which tells the length and whether ranges work.
        pub async fn url(url: impl Into<String>) -> Result<Source> {
            let url = url.into();
            let response = fetch(&url, 0, 1).await?;
            if response.status() == 200 {
                let bytes = whole(&url, &response).await?;
                return Ok(Source::bytes(url, bytes));
            }
            let range = response.headers().get("content-range").ok().flatten();
            let total = range.as_deref().and_then(|r| r.rsplit('/').next()).and_then(|n| n.parse().ok());
            match total {
                Some(len) => Ok(Source::Url { url, len }),
                None => Err(failed(&url, "the server does not tell the file's length (Content-Range)")),
            }
        }
    }

    pub async fn read_blob(name: &str, blob: &web_sys::Blob, start: u64, end: u64) -> Result<Vec<u8>> {
        let slice = blob.slice_with_f64_and_f64(start as f64, end as f64).map_err(|e| thrown(name, &e))?;
        exactly(name, buffer(name, slice.array_buffer()).await?, (end - start) as usize)
    }

    pub async fn read_url(url: &str, offset: u64, len: usize) -> Result<Vec<u8>> {
        if len == 0 {
            return Ok(Vec::new());
        }
        let response = fetch(url, offset, len as u64).await?;
        if response.status() == 206 {
            let body = response.array_buffer().map_err(|e| thrown(url, &e))?;
            return exactly(url, buffer(url, body).await?, len);
        }
        let all = whole(url, &response).await?;
        let range = offset as usize..offset as usize + len;
        all.get(range).map(<[u8]>::to_vec).ok_or_else(|| failed(url, "the file became shorter"))
    }

    async fn whole(url: &str, response: &web_sys::Response) -> Result<Vec<u8>> {
        let len = response.headers().get("content-length").ok().flatten().and_then(|n| n.parse::<u64>().ok());
        if len.is_none_or(|n| n > SMALL) {
            let what = "the server ignores range requests, and the file is too large to be held whole";
            return Err(failed(url, what));
        }
        buffer(url, response.array_buffer().map_err(|e| thrown(url, &e))?).await
    }

    /// `fetch` of a page or a worker, whichever this is; answers 200 or 206.
    async fn fetch(url: &str, offset: u64, len: u64) -> Result<web_sys::Response> {
        let request = web_sys::Request::new_with_str(url).map_err(|e| thrown(url, &e))?;
        let range = format!("bytes={offset}-{}", offset + len - 1);
        request.headers().set("range", &range).map_err(|e| thrown(url, &e))?;
        let global = js_sys::global();
        let fetch: Function = Reflect::get(&global, &"fetch".into()).map_err(|e| thrown(url, &e))?.unchecked_into();
        let promise = fetch.call1(&global, &request).map_err(|e| thrown(url, &e))?;
        let response = JsFuture::from(promise.unchecked_into::<Promise>()).await.map_err(|e| thrown(url, &e))?;
        let response: web_sys::Response = response.unchecked_into();
        match response.status() {
            200 | 206 => Ok(response),
            status => Err(failed(url, &format!("the server answered {status} {}", response.status_text()))),
        }
    }

    async fn buffer(name: &str, promise: Promise) -> Result<Vec<u8>> {
        let buffer = JsFuture::from(promise).await.map_err(|e| thrown(name, &e))?;
        Ok(Uint8Array::new(&buffer).to_vec())
    }

    fn exactly(name: &str, bytes: Vec<u8>, len: usize) -> Result<Vec<u8>> {
        if bytes.len() == len {
            return Ok(bytes);
        }
        Err(failed(name, &format!("{len} bytes wanted, {} came: the file changed while it was read", bytes.len())))
    }

    fn failed(name: &str, what: &str) -> Error {
        Error::Io { path: name.into(), what: what.into(), hint: "check the address and the connection".into() }
    }

    fn thrown(name: &str, err: &JsValue) -> Error {
        let text = err.dyn_ref::<js_sys::Error>().map(|e| String::from(e.message()));
        failed(name, &text.unwrap_or_else(|| format!("{err:?}")))
    }
}
