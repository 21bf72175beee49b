//! `template point`, `rollback`, `pin`, `prune` and `verify`.

use serde_json::{Value, json};

use super::{Mayfly, double::Double};

fn digest(n: u8) -> String {
    format!("sha256:{}", format!("{n:02x}").repeat(32))
}

fn template() -> Value {
    json!({
        "name": "macos", "digest": digest(2), "driver": "tart", "os": "macos", "arch": "aarch64", "cpus": 4,
        "memory_mib": 8192, "names": ["macos", "macos-latest"], "since": "2026-11-20T10:00:00Z", "why": "an update",
        "previous": [{ "digest": digest(1), "since": "2026-11-13T10:00:00Z", "why": "the first\u{1b}[31m" },
                     { "digest": digest(7), "since": null, "why": null }],
        "pin": { "why": "for the audit", "at": "2026-11-20T10:00:00Z" }, "last_used_at": "2026-11-20T10:00:00Z",
        "damage": { "at": "2026-11-20T10:00:00Z", "faults": [{ "file": "disk", "offset": 512, "bytes": 4096, "what": "rot" }] },
    })
}

#[tokio::test]
async fn names_are_pointed_and_rolled_back() {
    let double = Double::start().await;
    let mayfly = Mayfly::of(&double);
    double.on("GET /templates/macos", 200, template());
    double.on("PUT /templates/latest", 201, json!({ "name": "latest", "digest": digest(2) }));
    double.on("POST /templates/macos/rollback", 200, json!({ "name": "macos", "digest": digest(1) }));
    double.on("PUT /templates/macos/pin", 200, template());
    double.on_bytes("DELETE /templates/macos/pin", 204, "application/json", b"");

    // At what another name points at.
    let ran = mayfly.run(&["template", "point", "latest", "macos", "--why", "it works"]).await.ends(0);
    assert_eq!(ran.out, format!("latest  {}\n", digest(2)));
    assert_eq!(double.last().body, json!({ "digest": digest(2), "why": "it works" }));
    let asked = double.asked().len();
    mayfly.run(&["template", "point", "latest", &digest(9), "--json"]).await.ends(0).json();
    assert_eq!((double.asked().len(), double.last().body), (asked + 1, json!({ "digest": digest(9) })));

    assert_eq!(mayfly.run(&["template", "rollback", "macos"]).await.ends(0).out, format!("macos  {}\n", digest(1)));
    assert_eq!(double.last().body, json!({}));
    // As `show` prints it, and whole.
    for to in ["010101010101", &digest(1), &digest(1)[7..]] {
        mayfly.run(&["template", "rollback", "macos", "--to", to]).await.ends(0);
        assert_eq!(double.last().body, json!({ "to": digest(1) }), "{to}");
    }
    let ran = mayfly.run(&["template", "rollback", "macos", "--to", "abc"]).await.ends(2);
    assert!(ran.err.contains("template show macos"), "{}", ran.err);

    mayfly.run(&["template", "pin", "macos", "--why", "for the audit"]).await.ends(0);
    assert_eq!(double.last().body, json!({ "why": "for the audit" }));
    mayfly.run(&["template", "pin", "macos"]).await.ends(2);
    assert_eq!(mayfly.run(&["template", "unpin", "macos"]).await.ends(0).out, "macos  not pinned\n");

    let shown = mayfly.run(&["template", "show", "macos"]).await.ends(0).out;
    for part in [
        "also named  macos-latest",
        "since       2026-11-20 10:00:00Z: an update",
        "pinned      for the audit",
        "DAMAGED     disk from byte 512: rot",
        "previous    010101010101  2026-11-13 10:00:00Z  the first",
        "previous    070707070707",
    ] {
        assert!(shown.contains(part), "{part:?} in\n{shown}");
    }
    assert!(!shown.contains('\u{1b}'));
}

#[tokio::test]
async fn pruning_says_what_goes_and_what_stays() {
    let double = Double::start().await;
    let mayfly = Mayfly::of(&double);
    let held = |kind: &str, n: u8, names: Value, why: &str| json!({ "kind": kind, "digest": digest(n), "names": names, "bytes": 3_u64 << 30, "last_used_at": "2026-11-01T10:00:00Z", "why": why });
    double.on(
        "POST /templates/prune",
        200,
        json!({ "dry_run": true, "removed": [held("template", 1, json!(["macos"]), "nobody needs it"),
                held("partial_pull", 2, json!([]), "no pull uses this data any more")],
                "kept": [held("template", 3, json!(["macos"]), "the name macos points at it")],
                "freed_bytes": 6_u64 << 30, "total_bytes": 9_u64 << 30, "available_bytes": 1_u64 << 30 }),
    );
    let args = [
        "template",
        "prune",
        "--dry-run",
        "--older-than",
        "7d",
        "--keep-previous",
        "2",
        "--max-bytes",
        "100GiB",
        "--partial",
    ];
    let ran = mayfly.run(&args).await.ends(0);
    assert_eq!(
        double.last().body,
        json!({ "dry_run": true, "older_than_seconds": 604_800, "keep_previous": 2, "max_bytes": 100_u64 << 30, "partial": true })
    );
    let lines: Vec<&str> = ran.out.lines().collect();
    assert_eq!(lines.len(), 4, "{}", ran.out);
    assert!(lines[1].starts_with("would go ") && lines[1].contains("010101010101  macos  3.0 GiB"), "{}", ran.out);
    assert!(lines[2].starts_with("would go (pull)  020202020202  -"), "{}", ran.out);
    assert!(lines[3].starts_with("kept ") && lines[3].ends_with("the name macos points at it"), "{}", ran.out);
    assert!(ran.err.contains("6.0 GiB of 9.0 GiB would be freed at most"), "{}", ran.err);
    mayfly.run(&["template", "prune", "--json"]).await.ends(0).json();
    assert_eq!(double.last().body, json!({ "dry_run": false, "keep_previous": 1, "partial": false }));
    for bad in [["--max-bytes", "lots"], ["--older-than", "soon"], ["--keep-previous", "11"]] {
        mayfly.run(&["template", "prune", bad[0], bad[1]]).await.ends(2);
    }
}

#[tokio::test]
async fn verifying_says_what_is_damaged_and_exits_with_1() {
    let double = Double::start().await;
    let mayfly = Mayfly::of(&double);
    let found = |name: &str, faults: Value| {
        let sound = faults == json!([]);
        json!({ "name": name, "digest": digest(2), "sound": sound, "bytes": 4 << 20, "bytes_read": 1 << 20, "faults": faults,
                "next": if sound { Value::Null } else { json!("pull it again") } })
    };
    let fault =
        json!([{ "file": "disk", "offset": 512, "bytes": 4096, "what": "its bytes are not those of its digest" }]);
    double.on("GET /templates", 200, json!({ "items": [template(), json!({ "name": "twin", "digest": digest(2) })] }));
    double.on("POST /templates/macos/verify", 200, found("macos", json!([])));
    double.on(&format!("POST /templates/{}/verify", digest(1)), 200, found("old", fault.clone()));
    double.on(&format!("POST /templates/{}/verify", digest(7)), 200, found("older", json!([])));
    let ran = mayfly.run(&["template", "verify", "macos"]).await.ends(0);
    assert_eq!(ran.out, "macos  sound  4.0 MiB, 1.0 MiB of them on disk\n");
    let ran = mayfly.run(&["template", "verify", "macos", &digest(1)]).await.ends(1);
    assert!(ran.out.contains("  disk, 4096 bytes from byte 512 on: its bytes"), "{}", ran.out);
    assert!(ran.err.contains("pull it again"), "{}", ran.err);
    // Each version once.
    let asked = double.asked().len();
    let items = mayfly.run(&["template", "verify", "--all", "--json"]).await.ends(1).json()["items"].clone();
    assert_eq!((items.as_array().unwrap().len(), double.asked().len()), (3, asked + 4));
    assert_eq!(items[1]["faults"], fault);
    mayfly.run(&["template", "verify"]).await.ends(2);
    mayfly.run(&["template", "verify", "macos", "--all"]).await.ends(2);
}
