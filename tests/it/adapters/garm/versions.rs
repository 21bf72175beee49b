//! The commands that need no service, in both versions of the interface.

use serde_json::json;

use super::{Garm, by_hand};
use crate::cli::program;

#[tokio::test]
async fn the_provider_describes_itself() {
    let garm = Garm::new().await;
    let ask = async |command: &str, version: &str| garm.call(command).version(version).ran().await;
    for version in ["", "v0.1.0", "v0.1.1"] {
        let ran = ask("GetVersion", version).await.ends(0);
        assert_eq!(ran.out, env!("CARGO_PKG_VERSION"));
    }
    assert_eq!(ask("GetSupportedInterfaceVersions", "v0.1.1").await.ends(0).json(), json!(["v0.1.0", "v0.1.1"]));
    let schema = ask("GetExtraSpecsJSONSchema", "v0.1.1").await.ends(0).json();
    assert!(schema["properties"]["memory_mib"].is_object(), "{schema:#}");
    let schema = ask("GetConfigJSONSchema", "v0.1.1").await.ends(0).json();
    assert!(schema["properties"]["token_file"]["description"].is_string(), "{schema:#}");
    for command in ["GetSupportedInterfaceVersions", "GetConfigJSONSchema", "ValidatePoolInfo"] {
        let ran = ask(command, "v0.1.0").await.ends(1);
        assert!(ran.err.contains("v0.1.0 has no command") && ran.out.is_empty(), "{}", ran.err);
    }
    assert!(ask("Reboot", "v0.1.1").await.ends(1).err.contains("\"Reboot\""));
    let ran = ask("GetVersion", "v0.2.0").await.ends(1);
    assert!(ran.err.contains("GARM_INTERFACE_VERSION") && ran.err.contains("v0.1.1"), "{}", ran.err);
}

#[tokio::test]
async fn extra_specs_of_a_pool_are_judged() {
    let garm = Garm::new().await;
    let judge = |specs: &str| {
        use base64::{Engine, engine::general_purpose::STANDARD};
        garm.call("ValidatePoolInfo").version("v0.1.1").variable("GARM_POOL_EXTRASPECS", &STANDARD.encode(specs))
    };
    for specs in ["null", "{}", r#"{"cpus": 2, "unknown": true}"#] {
        assert_eq!(judge(specs).ran().await.ends(0).out, "");
    }
    let ran = judge(r#"{"cpus": "two"}"#).ran().await.ends(1);
    assert!(ran.err.starts_with("extra_specs: cpus: ") && ran.err.lines().count() == 1, "{}", ran.err);
}

#[tokio::test]
async fn the_name_of_a_link_selects_the_provider() {
    let garm = Garm::new().await;
    let link = garm.path("garm-provider-mayfly");
    std::os::unix::fs::symlink(program(), &link).unwrap();
    for (args, program) in [(&["garm-provider"][..], program()), (&[], &link)] {
        let ran = by_hand(args, program).await.ends(1);
        assert!(ran.err.contains("GARM_COMMAND is not set") && ran.err.contains("docs/garm.md"), "{}", ran.err);
        assert_eq!(ran.out, "");
    }
    // The script that calls it by its subcommand, and a configuration that it names.
    let call = garm.call("ListInstances").pool("p").config(std::path::Path::new(""));
    let mut command = call.command();
    command.args(["garm-provider", "--config"]).arg(garm.path("mayfly.toml"));
    let output = command.output().await.unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"[]"[..]));
}
