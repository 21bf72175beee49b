//! Turns the bootstrap bundle into one shell script that writes the files and executes `boot.sh`.
//!
//! - It needs a POSIX shell, `mkdir`, `rm` and `chmod`: no tar, no base64. File contents are arguments of `printf`,
//!   which is built into all known system shells, so they never appear in a process list.
//! - It is plain ASCII without carriage returns, because carriers may change other text: cloud-init parses user-data
//!   as MIME and converts line ends.
//! - It is one compound command: a shell that received only a part of it runs none of it.
//! - Run again in the same guest, it leaves the files alone (the wrapper may be reading them) and only runs
//!   `boot.sh`, which is safe to repeat. If the template contains another vm's bundle, the script removes it.

use std::fmt::Write as _;

use super::kit::{Kit, KitFile};

/// Bytes of a file in one `printf`.
const PIECE: usize = 1024;

/// The directory of the bundle.
pub(super) enum InstallTarget {
    System,
    /// For root like `System`, for others a directory in their home.
    OfUser,
    #[cfg(test)]
    At(String),
}

impl InstallTarget {
    /// Shell code that sets `kit`.
    fn directory(&self) -> String {
        match self {
            InstallTarget::System => "kit=/opt/mayfly".to_owned(),
            // Background processes of a system may have no HOME: then the shell asks the user database.
            InstallTarget::OfUser => "if [ \"$(id -u)\" = 0 ]; then kit=/opt/mayfly; else\n\
                 if [ -z \"${HOME:-}\" ]; then eval \"HOME=~$(id -un)\"; export HOME; fi\n\
                 kit=${HOME:?}/.mayfly; fi"
                .to_owned(),
            #[cfg(test)]
            InstallTarget::At(path) => format!("kit='{path}'"),
        }
    }
}

/// Permits the wrapper of this attempt to start its job. For guests that cannot ask over the guest API; a repetition
/// changes nothing.
pub(super) fn start_script(attempt: u32, place: &InstallTarget) -> String {
    let directory = place.directory();
    format!(
        "#!/bin/sh\n\
         {{\n\
         set -eu\n\
         {directory}\n\
         umask 022\n\
         cd \"$kit/run\"\n\
         echo {attempt} >start.new\n\
         mv -f start.new start\n\
         exit\n\
         }}\n"
    )
}

/// Powers the guest off, after this script has ended: its connection would break otherwise, which looks like a failure.
/// Fails at once if the user has no permission to do so.
pub(super) fn power_off_script(place: &InstallTarget) -> String {
    let directory = place.directory();
    format!(
        "#!/bin/sh\n\
         {{\n\
         set -eu\n\
         {directory}\n\
         cd \"$kit\"\n\
         if ! sh ./power-off.sh check; then\n\
         \x20   echo 'the user may not power the guest off: sudo asks for a password, or is not there' >&2\n\
         \x20   exit 1\n\
         fi\n\
         (trap '' HUP; sleep 1; exec sh ./power-off.sh) </dev/null >/dev/null 2>&1 &\n\
         exit\n\
         }}\n"
    )
}

pub(super) fn script(kit: &Kit, place: &InstallTarget) -> String {
    let id = kit.vm_id();
    let directory = place.directory();
    let mut s = format!(
        "#!/bin/sh\n\
         # Writes the kit of vm {id} and starts it.\n\
         {{\n\
         set -eu\n\
         {directory}\n\
         (umask 022 && mkdir -p \"${{kit%/*}}\")\n\
         umask 077\n\
         mkdir -p \"$kit\"\n\
         cd \"$kit\"\n\
         if [ ! -f .written-{id} ]; then\n\
         chmod 0700 .\n\
         rm -rf run payload ready.env .written-*\n"
    );
    for file in kit.files() {
        write_file(&mut s, file);
    }
    let _ = write!(s, ": >.written-{id}\nfi\ncd /\nexec /bin/sh \"$kit/boot.sh\" </dev/null\n}}\n");
    s
}

fn write_file(s: &mut String, file: &KitFile) {
    let name = file.name;
    // Removed first, so that the new file does not inherit a mode or follow a link.
    let _ = write!(s, "rm -rf {name}\n: >{name}\n");
    for piece in file.bytes.chunks(PIECE) {
        let _ = writeln!(s, "printf '{}' >>{name}", format_of(piece));
    }
    let _ = writeln!(s, "chmod {:04o} {name}", file.mode);
}

/// A `printf` format that prints exactly these bytes and can stand between single quotes.
fn format_of(bytes: &[u8]) -> String {
    let mut s = String::with_capacity(bytes.len() + bytes.len() / 8);
    for (n, &b) in bytes.iter().enumerate() {
        match b {
            b'%' => s.push_str("%%"),
            b'\\' => s.push_str(r"\\"),
            // At the beginning it would be an option.
            b'-' if n == 0 => s.push_str(r"\055"),
            b'\'' => s.push_str(r"\047"),
            b'\n' | b' '..=b'~' => s.push(char::from(b)),
            _ => {
                let _ = write!(s, "\\{b:03o}");
            }
        }
    }
    s
}

#[cfg(test)]
pub(super) mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

    use proptest::prelude::*;

    use super::{
        super::kit::{
            KitInput,
            tests::{input, shells},
        },
        *,
    };

    /// Counts its runs and does nothing else.
    pub const BOOT: &str = "#!/bin/sh\ncd \"${0%/*}\"; mkdir -p run; echo booted >>run/count; wc -l <run/count\n";

    fn run(shell: &[&str], script: &str) -> std::process::Output {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("user-data");
        fs::write(&path, script).unwrap();
        Command::new(shell[0]).args(&shell[1..]).arg(&path).current_dir(dir.path()).output().unwrap()
    }

    pub fn assert_written(kit: &Kit, dir: &Path) {
        for file in kit.files() {
            let path = dir.join(file.name);
            assert!(fs::read(&path).unwrap() == file.bytes, "{}", file.name);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, file.mode, "{}", file.name);
        }
        assert_eq!(fs::metadata(dir).unwrap().permissions().mode() & 0o7777, 0o700);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
        #[test]
        fn every_shell_writes_the_very_bytes(
            payload in prop_oneof!["[^\0]{0,3000}", "-[%\\\\'\n\r-]{0,1500}"],
            value in "[^\0]{0,60}",
        ) {
            let env = [("V".to_owned(), value)].into();
            let kit = Kit::new(KitInput { payload: Some(payload), env, ..input() }).unwrap().with_boot(BOOT);
            for shell in shells().into_iter().filter(|s| s[..] != ["zsh"]) {
                let root = tempfile::tempdir().unwrap();
                let dir = root.path().join("opt/mayfly");
                let script = script(&kit, &InstallTarget::At(dir.display().to_string()));
                prop_assert!(script.bytes().all(|b| b == b'\n' || (b' '..=b'~').contains(&b)));
                let out = run(&shell, &script);
                prop_assert!(out.status.success(), "{:?}: {}", shell, String::from_utf8_lossy(&out.stderr));
                prop_assert_eq!(out.stdout.trim_ascii(), b"1");
                assert_written(&kit, &dir);
                let parent = fs::metadata(root.path().join("opt")).unwrap().permissions().mode() & 0o777;
                prop_assert_eq!(parent, 0o755);
            }
        }
    }

    #[test]
    fn again_boots_again_and_writes_nothing() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("k");
        let kit = Kit::new(input()).unwrap().with_boot(BOOT);
        let script = script(&kit, &InstallTarget::At(dir.display().to_string()));
        assert!(run(&["sh"], &script).status.success());
        fs::write(dir.join("wrapper.sh"), "in use").unwrap();
        assert_eq!(run(&["sh"], &script).stdout.trim_ascii(), b"2");
        assert_eq!(fs::read(dir.join("wrapper.sh")).unwrap(), b"in use");
    }

    #[test]
    fn what_another_vm_left_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("k");
        let place = InstallTarget::At(dir.display().to_string());
        let old = KitInput { vm_id: crate::domain::VmId::mint(), ..input() };
        assert!(run(&["sh"], &script(&Kit::new(old).unwrap().with_boot(BOOT), &place)).status.success());
        let kit = Kit::new(KitInput { payload: None, ..input() }).unwrap().with_boot(BOOT);
        assert_eq!(run(&["sh"], &script(&kit, &place)).stdout.trim_ascii(), b"1");
        assert!(!dir.join("payload").exists());
        assert_written(&kit, &dir);
    }

    /// Tools that both macOS and Linux have are sufficient, also for a background service without HOME.
    #[test]
    fn few_programs_and_no_home_are_enough() {
        let root = tempfile::tempdir().unwrap();
        let tools = root.path().join("tools");
        fs::create_dir(&tools).unwrap();
        let found = |name: &str| {
            let out = Command::new("sh").args(["-c", &format!("command -v {name}")]).output().unwrap().stdout;
            String::from_utf8(out).unwrap().trim().to_owned()
        };
        for name in ["mkdir", "rm", "chmod"] {
            std::os::unix::fs::symlink(found(name), tools.join(name)).unwrap();
        }
        let home = root.path().join("home");
        // The user database has no home in this directory, so its result is checked but not used.
        fs::write(tools.join("id"), "#!/bin/sh\ncase $1 in -u) echo 501 ;; -un) echo root ;; esac\n").unwrap();
        fs::set_permissions(tools.join("id"), fs::Permissions::from_mode(0o755)).unwrap();
        let script = script(&Kit::new(input()).unwrap().with_boot("echo $HOME\n"), &InstallTarget::OfUser);
        // Not busybox: it prefers its own `id` to the one on the PATH, and for root the bundle would go to the
        // system's directory.
        for shell in shells().into_iter().filter(|s| s[..] != ["zsh"] && s[0] != "busybox" && found(s[0]) != "busybox")
        {
            let run = |script: &str, home: Option<&Path>| {
                let mut command = Command::new(found(shell[0]));
                command.args(&shell[1..]).args(["-c", script]).current_dir("/").env_remove("HOME").env("PATH", &tools);
                if let Some(home) = home {
                    command.env("HOME", home);
                }
                command.output().unwrap()
            };
            // busybox may prefer its own `id` to the one on the PATH: root's bundle would go to this machine's
            // directory.
            if run("id -u", None).stdout != b"501\n" {
                continue;
            }
            let out = run(&script, Some(&home));
            assert!(out.status.success(), "{shell:?}: {}", String::from_utf8_lossy(&out.stderr));
            assert!(home.join(".mayfly/mayfly.env").exists());
            fs::remove_dir_all(&home).unwrap();

            let before_writing = script.split("(umask").next().unwrap().to_owned() + "printf %s \"$kit\"\n}";
            let out = run(&before_writing, None);
            let kit = String::from_utf8(out.stdout).unwrap();
            assert!(kit.starts_with('/') && kit.ends_with("/.mayfly"), "{shell:?}: {kit}");
        }
    }

    #[test]
    fn half_a_script_does_nothing() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("k");
        let whole = script(&Kit::new(input()).unwrap(), &InstallTarget::At(dir.display().to_string()));
        for cut in [whole.len() - 2, whole.len() - 10, whole.len() / 2, 300] {
            run(&["sh"], &whole[..cut]);
            assert!(!dir.exists(), "cut at {cut}");
        }
    }

    #[test]
    fn a_failure_on_the_way_is_the_scripts_failure() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        let place = InstallTarget::At(root.path().join("file/k").display().to_string());
        assert!(!run(&["sh"], &script(&Kit::new(input()).unwrap(), &place)).status.success());
    }
}
