//! The script that runs the setup script, in a shell of this machine.

use std::process::Stdio;

use tokio::process::Command;

use crate::cli::{Ran, run};

async fn guest(home: &std::path::Path, setup: &str, path: &str) -> Ran {
    let mut command = Command::new("/bin/sh");
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/src/adapters/shoes/guest.sh")).env_clear();
    command.env("PATH", path).env("MAYFLY_HOME", home).env("TMPDIR", home).env("MYSHOES_SETUP_SCRIPT", setup);
    run(command.stdin(Stdio::null())).await
}

#[tokio::test]
async fn the_setup_script_runs_in_bash_and_its_secret_stays_in_it() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("runner.env"), "hush").unwrap();
    let setup = "#!/bin/bash\nset -e\n# hush\n[[ -n $BASH_VERSION ]] && stat -c %a \"$0\"\nenv\n\
                 tr '\\0' ' ' </proc/$PPID/cmdline\nexit 3";
    let ran = guest(home.path(), setup, "/usr/bin:/bin").await.ends(3);
    assert!(ran.out.starts_with("600\n") && ran.out.contains("returned 3"), "{}", ran.out);
    assert!(!ran.out.contains("hush") && !ran.err.contains("hush"), "{}{}", ran.out, ran.err);
    assert_eq!(std::fs::read_to_string(home.path().join("runner.env")).unwrap(), "");
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 1, "the script is left");
}

#[tokio::test]
async fn a_guest_without_bash_says_so() {
    let home = tempfile::tempdir().unwrap();
    let ran = guest(home.path(), "#!/bin/bash\n# hush", "/nowhere").await.ends(126);
    assert!(ran.out.contains("needs bash"), "{}", ran.out);
}
