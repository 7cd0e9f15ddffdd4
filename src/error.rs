//! The one error type. The user's data or machine is wrong -> `Err`; our own bug -> panic with the numbers.
//!
//! A message says what is wrong (both numbers), where (file, line, tensor, flag) and what to do. The web page
//! receives `{ code, message, hint }`; the command line prints `error: message` and `hint: ...`.

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading or writing failed in the operating system, browser storage or network.
    #[error("{path}: {what}")]
    Io { path: String, what: String, hint: String },

    /// A file breaks its own format: truncated, overlapping, lying about sizes.
    #[error("{file}: {at}: {what}")]
    Malformed { file: String, at: String, what: String, hint: String },

    /// The file is well formed but holds something that is not supported; says the name and the reason.
    #[error("{file}: {what}")]
    Unsupported { file: String, what: String, hint: String },

    /// The parts of a model or adapter do not fit together; holds every mismatch found, shows the first few.
    #[error("{file}: {}", first_few(problems))]
    Mismatch { file: String, problems: Vec<String>, hint: String },

    /// Training or evaluation records are wrong. `line` counts from 1.
    #[error("{file}{}: {what}", line.map(|l| format!(":{l}")).unwrap_or_default())]
    Data { file: String, line: Option<u64>, what: String, hint: String },

    /// A setting (a flag of the command line, a field of the form) has a value that cannot work.
    #[error("--{flag}: {what}")]
    Setting { flag: String, what: String, hint: String },

    /// The device is missing, too small or broken.
    #[error("{what}")]
    Device { what: String, hint: String },

    /// The device was there and is gone: a driver was reset, the machine slept, the browser took it away.
    #[error("the GPU was lost: {what}")]
    DeviceLost { what: String, hint: String },

    /// The device has no room for what is needed.
    #[error("{what}")]
    OutOfMemory { what: String, hint: String },

    /// Loss or gradient stopped being finite. The state before `step` is kept.
    #[error("step {step}: {what}")]
    Diverged { step: u64, what: String, hint: String },
}

/// Bytes as people read them.
pub fn size(bytes: u64) -> String {
    match bytes {
        b if b >= 1 << 30 => format!("{:.2} GiB", b as f64 / (1u64 << 30) as f64),
        b if b >= 1 << 20 => format!("{:.1} MiB", b as f64 / (1u64 << 20) as f64),
        b => format!("{:.1} KiB", b as f64 / 1024.0),
    }
}

/// One wrong setting makes hundreds of tensors wrong; the first few tell.
fn first_few(problems: &[String]) -> String {
    const SHOWN: usize = 6;
    let mut text = problems[..problems.len().min(SHOWN)].join("\n  ");
    if problems.len() > SHOWN {
        text += &format!("\n  … and {} more", problems.len() - SHOWN);
    }
    text
}

impl Error {
    /// A stable name for programs: the `code` of JSON errors.
    pub fn code(&self) -> &'static str {
        match self {
            Error::Io { .. } => "io",
            Error::Malformed { .. } => "malformed",
            Error::Unsupported { .. } => "unsupported",
            Error::Mismatch { .. } => "mismatch",
            Error::Data { .. } => "data",
            Error::Setting { .. } => "setting",
            Error::Device { .. } => "device",
            Error::DeviceLost { .. } => "device_lost",
            Error::OutOfMemory { .. } => "out_of_memory",
            Error::Diverged { .. } => "diverged",
        }
    }

    /// What the user can do about it; empty where the message says it all.
    pub fn hint(&self) -> &str {
        match self {
            Error::Io { hint, .. }
            | Error::Malformed { hint, .. }
            | Error::Unsupported { hint, .. }
            | Error::Mismatch { hint, .. }
            | Error::Data { hint, .. }
            | Error::Setting { hint, .. }
            | Error::Device { hint, .. }
            | Error::DeviceLost { hint, .. }
            | Error::OutOfMemory { hint, .. }
            | Error::Diverged { hint, .. } => hint,
        }
    }

    pub fn io(path: impl Into<String>, err: std::io::Error) -> Error {
        let hint = match err.kind() {
            std::io::ErrorKind::NotFound => "check the path",
            std::io::ErrorKind::PermissionDenied => "check the permissions",
            std::io::ErrorKind::StorageFull => "free some disk space and try again",
            _ => "",
        };
        Error::Io { path: path.into(), what: err.to_string(), hint: hint.into() }
    }

    pub fn setting(flag: &str, what: impl Into<String>, hint: impl Into<String>) -> Error {
        Error::Setting { flag: flag.into(), what: what.into(), hint: hint.into() }
    }

    pub fn device_lost(what: impl Into<String>) -> Error {
        let hint = "go on from the last checkpoint; if it happens again, lower --batch-size or --seq-len, or use \
                    --device cpu";
        Error::DeviceLost { what: what.into(), hint: hint.into() }
    }

    /// `bytes` are what was asked for; `what` says where and, if the system says so, why.
    pub fn out_of_memory(what: &str, bytes: u64) -> Error {
        let what = format!("there is no room for {} {what}", size(bytes));
        Error::OutOfMemory { what, hint: "take a smaller model, or one that is quantised".into() }
    }

    /// Where memory was short: what those who asked for it could do with less of.
    pub fn of_memory(self, hint: impl FnOnce() -> String) -> Error {
        match self {
            Error::OutOfMemory { what, .. } => Error::OutOfMemory { what, hint: hint() },
            other => other,
        }
    }

    pub fn device(what: impl Into<String>, hint: impl Into<String>) -> Error {
        Error::Device { what: what.into(), hint: hint.into() }
    }
}
