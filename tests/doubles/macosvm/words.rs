//! What the program prints.

use std::{io::Write, sync::Mutex};

use jiff::Timestamp;

/// `NSLog`: a time stamp, the program and its process, on standard error, at once.
pub fn log(text: &str) {
    let now = Timestamp::now().strftime("%Y-%m-%d %H:%M:%S%.3f").to_string();
    let pid = std::process::id();
    let _ = writeln!(std::io::stderr(), "{now} macosvm[{pid}:{}] {text}", pid + 1000);
}

/// `printf` without a flush: on a file or a pipe, this comes late, and never if the program dies by a signal.
static PRINTED: Mutex<String> = Mutex::new(String::new());

pub fn print(text: &str) {
    if let Ok(mut printed) = PRINTED.lock() {
        printed.push_str(text);
        printed.push('\n');
    }
}

/// At a normal exit.
pub fn flush() {
    if let Ok(mut printed) = PRINTED.lock() {
        let _ = std::io::stdout().write_all(printed.as_bytes());
        printed.clear();
    }
}

/// The guest's serial line, which passes that buffer by.
pub fn serial(bytes: &[u8]) {
    let mut out = std::io::stdout();
    let _ = out.write_all(bytes).and_then(|()| out.flush());
}

/// An error as the framework prints it.
pub fn framework_error(code: i32, text: &str, failure: &str, reason: &str) -> String {
    format!(
        "Error Domain=VZErrorDomain Code={code} \"{text}\" UserInfo={{NSLocalizedFailure={failure}, \
         NSLocalizedFailureReason={reason}}}"
    )
}

pub fn invalid(reason: &str) -> String {
    let failure = "Invalid virtual machine configuration.";
    framework_error(2, &format!("{failure} {reason}"), failure, reason)
}
