//! Whether QEMU can confine itself on this host.

use std::{path::Path, time::Duration};

use super::args::SANDBOX;
use crate::platform::process::Command;

const ANSWER: Duration = Duration::from_secs(10);

/// `Err` says what is missing. QEMU sets its filter up before it looks at the machine, so this starts none.
pub async fn check(binary: &Path) -> Result<(), String> {
    if !cfg!(target_os = "linux") {
        return Err("QEMU confines itself on Linux only".to_owned());
    }
    let ran = Command::new(binary, ANSWER).args(SANDBOX).args(["-M", "help"]).run().await;
    match ran {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = output.stderr_tail.lines().next().unwrap_or_default().to_owned();
            Err(format!(
                "QEMU runs without its own sandbox, because it refuses `-sandbox` ({said}): use a QEMU that is built with \
                 seccomp, as that of Debian and Ubuntu is"
            ))
        }
        Err(error) => Err(format!("QEMU runs without its own sandbox, because it could not be asked for it: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[cfg(target_os = "linux")]
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
