//! Whether QEMU can confine itself on this host.

use std::{path::Path, time::Duration};

use super::args::SANDBOX;
use crate::platform::process::Command;

const ANSWER: Duration = Duration::from_secs(10);

/// What to do when QEMU refuses.
pub const REMEDY: &str = "use a QEMU that is built with seccomp, as that of Debian and Ubuntu is";
/// Arguments with which QEMU ends at once, with 0 if it has a sandbox. It sets its filter up before it looks at the machine.
pub const QUESTION: [&str; 4] = [SANDBOX[0], SANDBOX[1], "-M", "help"];

/// How the answer begins.
pub const ANSWER_BEGINS: &str = "Supported machines are:";

/// `Err` says what is missing. No guest is started.
pub async fn check(binary: &Path) -> Result<(), String> {
    if !cfg!(target_os = "linux") {
        return Err("QEMU confines itself on Linux only".to_owned());
    }
    let ran = Command::new(binary, ANSWER).args(QUESTION).run().await;
    match ran {
        Ok(output) if output.status.success() && output.stdout_text().starts_with(ANSWER_BEGINS) => Ok(()),
        Ok(output) => {
            let said = output.stderr_tail.lines().next().unwrap_or_default().to_owned();
            Err(format!("QEMU runs without its own sandbox, because it refuses `-sandbox` ({said}): {REMEDY}"))
        }
        Err(error) => Err(format!("QEMU runs without its own sandbox, because it could not be asked for it: {error}")),
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[tokio::test]
    async fn a_qemu_without_a_sandbox_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let binary = dir.path().join("qemu");
        let script =
            "#!/bin/sh\necho 'qemu: -sandbox on: -sandbox support is not enabled in this QEMU binary' >&2\nexit 1\n";
        std::fs::write(&binary, script).unwrap();
        std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
        let missing = check(&binary).await.unwrap_err();
        assert!(missing.contains("support is not enabled in this QEMU binary): use a QEMU"), "{missing}");
    }
}
