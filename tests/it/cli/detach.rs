//! A program in a session of its own.

use std::process::{Command, Stdio};

fn detach(args: &[&str]) -> (Option<i32>, u32, String, String) {
    let child = Command::new(super::program())
        .arg("detach")
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), pid, text(output.stdout), text(output.stderr))
}

#[test]
fn the_program_has_a_session_and_keeps_the_process() {
    for separator in [&["--"][..], &[]] {
        let (code, pid, out, err) =
            detach(&[separator, &["sh", "-c", "ps -o sess= -p $$; echo $$ \"$0\"; exit 7", "--json"]].concat());
        let words: Vec<&str> = out.split_ascii_whitespace().collect();
        let pid = pid.to_string();
        assert_eq!((code, words.as_slice(), err.as_str()), (Some(7), &[pid.as_str(), &pid, "--json"][..], ""));
    }
}

#[test]
fn what_cannot_be_run_is_said() {
    let (code, _, out, err) = detach(&["--", "/none/tart", "run"]);
    assert_eq!((code, out.as_str()), (Some(127), ""));
    assert!(err.starts_with("mayfly detach: cannot run /none/tart: "), "{err}");
    let (code, _, _, err) = detach(&["--", "/"]);
    assert_eq!(code, Some(126), "{err}");
    let (code, _, _, err) = detach(&[]);
    assert_eq!((code, err.as_str()), (Some(2), "mayfly detach: which program is to be run?\n"));
}
