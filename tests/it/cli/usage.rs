//! What is said about arguments that are missing or unknown.

use super::Mayfly;

#[tokio::test]
async fn a_wrong_argument_is_answered_with_what_there_is() {
    let mayfly = Mayfly::new();
    let logs = "'--tail' is an option of 'mayfly vm logs'";
    for (args, said) in [
        // In another command only.
        ("vm list --tail 3", &[logs, "Usage: mayfly vm list [OPTIONS]\n"][..]),
        ("host --tail=3", &[logs, "Usage: mayfly host [OPTIONS]\n"]),
        ("--tail", &[logs]),
        ("template list --force", &["'--force' is an option of 'mayfly vm delete'"]),
        // Mistyped.
        ("vm delete --wat x", &["'--wait'", "Usage: mayfly vm delete [OPTIONS] <VM>...\n"]),
        (
            "token create ci --scop read",
            &["'--scope'", "Usage: mayfly token create [OPTIONS] --scope <SCOPE> <NAME>\n"],
        ),
        ("vm list --stat queued", &["'--state'"]),
        ("vm lst", &["'list'"]),
        // Nowhere.
        ("serve --colours", &["unexpected argument '--colours' found\n\nUsage: mayfly serve [OPTIONS]\n"]),
        ("vm logs x --nowhere", &["unexpected argument '--nowhere' found\n\nUsage: mayfly vm logs [OPTIONS] <VM>\n"]),
        // One level too high.
        ("logs x", &["'mayfly vm logs'"]),
        ("pull x", &["'mayfly template pull'"]),
        ("nonsense", &["unrecognized subcommand 'nonsense'\n\nUsage: mayfly [OPTIONS] <COMMAND>\n"]),
        // Missing, where several do.
        ("template add x", &["<--from <PATH>|--disk <FILE>|--vm-dir <DIR>>"]),
        ("template verify", &["<NAME|--all>"]),
        ("vm create -t micro", &["--command <COMMAND>", "--none"]),
        ("vm create -t micro --github-scope acme/app", &["\n  --runner-label <LABEL>\n"]),
        ("--data-dir list vm show", &["<VM>", "Usage: mayfly vm show [OPTIONS] <VM>\n"]),
    ] {
        let words: Vec<&str> = args.split(' ').collect();
        let ran = mayfly.run(&words).await.ends(2);
        for part in said {
            assert!(ran.err.contains(part), "{args}: {part:?} is missing:\n{}", ran.err);
        }
        for wrong in ["--ca-file", "as a value"] {
            assert!(!ran.err.contains(wrong), "{args}: {wrong}:\n{}", ran.err);
        }
    }
}
