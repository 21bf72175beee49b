//! One creation gives one vm, however often it is asked for.

use serde_json::{Value, json};

use super::{CONTROLLER, Garm, POOL, token};

#[tokio::test]
async fn a_creation_answers_at_once_with_a_vm_that_waits() {
    let garm = Garm::new().await;
    let secret = token("hush-hush", 0);
    let ran = garm.create("garm-a1", &secret).ran().await.ends(0);
    let expected = json!({
        "provider_id": "garm-a1", "name": "garm-a1", "status": "running", "os_type": "linux", "os_arch": "amd64",
    });
    assert_eq!((ran.json(), ran.err.as_str()), (expected, ""));

    let vms = garm.vms().await;
    let [vm] = vms.as_slice() else { panic!("{vms:#?}") };
    assert_eq!(
        (&vm["state"], &vm["template"], &vm["runner"]["kind"]),
        (&json!("queued"), &json!("micro"), &json!("script"))
    );
    assert!(vm["name"].as_str().unwrap().starts_with("garm-a1-"), "{vm:#}");
    let labels = &vm["labels"];
    assert_eq!(labels["owner"], format!("garm/{CONTROLLER}"));
    assert_eq!((&labels["garm.name"], &labels["garm.pool"]), (&json!("garm-a1"), &json!(POOL)));
    // 1800 s of the token, less 5 min, 300 s for the boot and 120 s for the configuration.
    let budgets = &vm["budgets"];
    let wait = budgets["queue_seconds"].as_i64().unwrap();
    assert!((1060..=1080).contains(&wait), "{wait}");
    assert_eq!((&budgets["lifetime_seconds"], &budgets["unobserved_seconds"]), (&json!(2592000), &json!(2592000)));
    // The token is in the sealed environment of the guest only.
    assert!(!vm.to_string().contains("hush"), "{vm:#}");
    for entry in std::fs::read_dir(garm.api.dir.path()).unwrap().flatten() {
        if let Ok(bytes) = std::fs::read(entry.path()) {
            assert!(!bytes.windows(9).any(|window| window == b"hush-hush"), "{}", entry.path().display());
        }
    }
}

#[tokio::test]
async fn a_name_and_a_token_are_one_vm_and_another_token_replaces_it() {
    let garm = Garm::new().await;
    let first = garm.create("garm-a1", &token("one", 0));
    let answer = first.ran().await.ends(0).json();
    // A repetition has less time to wait, and is the same creation all the same.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    assert_eq!(first.ran().await.ends(0).json(), answer);
    let vms = garm.vms().await;
    assert_eq!(vms.len(), 1, "{vms:#?}");
    let old = vms[0]["id"].clone();

    assert_eq!(garm.create("garm-a1", &token("two", 1)).ran().await.ends(0).json(), answer);
    let vms = garm.vms().await;
    let [vm] = vms.as_slice() else { panic!("{vms:#?}") };
    assert_ne!(vm["id"], old);
    assert!(vm["labels"]["garm.attempt"].as_str().unwrap().starts_with("1."), "{vm:#}");

    // What was asked for before that comes too late, and touches nothing.
    let ran = first.ran().await.ends(1);
    assert!(ran.err.contains("with another token") && ran.out.is_empty(), "{}{}", ran.out, ran.err);
    let now = garm.vms().await;
    assert_eq!((now.len(), &now[0]["id"]), (1, &vm["id"]));
}

#[tokio::test]
async fn a_creation_whose_vm_has_ended_gives_no_other() {
    let garm = Garm::new().await;
    let create = garm.create("garm-a1", &token("one", 0));
    create.ran().await.ends(0);
    garm.delete("garm-a1").ran().await.ends(0);
    let ran = create.ran().await.ends(1);
    assert!(ran.err.contains("its vm has ended already"), "{}", ran.err);
    assert_eq!(garm.vms().await, Vec::<Value>::new());
}

#[tokio::test]
async fn several_at_once_make_one_vm() {
    let garm = Garm::new().await;
    let create = garm.create("garm-a1", &token("one", 0));
    let all = futures_util::future::join_all((0..4).map(|_| create.ran())).await;
    for ran in all {
        ran.ends(0);
    }
    assert_eq!(garm.vms().await.len(), 1);
    // Two attempts at the same time: the later one stays.
    let (early, late) = (garm.create("garm-b1", &token("one", 0)), garm.create("garm-b1", &token("two", 1)));
    let (_, late) = tokio::join!(early.ran(), late.ran());
    late.ends(0);
    early.ran().await.ends(1);
    let vms = garm.vms().await;
    let of_b: Vec<&Value> = vms.iter().filter(|vm| vm["labels"]["garm.name"] == "garm-b1").collect();
    assert_eq!(of_b.len(), 1, "{of_b:#?}");
    assert!(of_b[0]["labels"]["garm.attempt"].as_str().unwrap().starts_with("1."));
}

#[tokio::test]
async fn sizes_come_from_flavors_and_extra_specs_of_any_form() {
    let garm = Garm::new().await;
    let config = std::fs::read_to_string(garm.path("mayfly.toml")).unwrap();
    let config = garm.write(
        "sizes.toml",
        &format!("{config}[defaults.labels]\nteam = 'core'\n[flavors.big]\ncpus = 4\nmemory_mib = 512\n"),
    );
    let vm = async |name: &str, changes: Value, version: &str| {
        let call = garm.create_with(name, &token(name, 0), changes).config(&config).version(version);
        call.ran().await.ends(0);
        garm.vms().await.into_iter().find(|vm| vm["labels"]["garm.name"] == name).unwrap()
    };
    for (n, specs) in [json!(null), json!({}), json!([1]), json!({"other": {"tool": 1}})].into_iter().enumerate() {
        let vm = vm(&format!("garm-{n}"), json!({"extra_specs": specs}), "v0.1.1").await;
        assert_eq!((&vm["cpus"], &vm["labels"]["team"]), (&json!(1), &json!("core")));
    }
    let big = vm(
        "garm-big",
        json!({"flavor": "big", "extra_specs": {"memory_mib": 256, "labels": {"team": "web"}}}),
        "v0.1.0",
    )
    .await;
    assert_eq!((&big["cpus"], &big["memory_mib"], &big["labels"]["team"]), (&json!(4), &json!(256), &json!("web")));
    let budgets = json!({"extra_specs": {"budgets": {"boot_seconds": 600, "lifetime_seconds": 3600}}});
    let slow = vm("garm-slow", budgets, "v0.1.0").await;
    assert_eq!(slow["budgets"]["lifetime_seconds"], 3600);
    assert!(slow["budgets"]["queue_seconds"].as_i64().unwrap() <= 780, "{slow:#}");
}

/// GARM has no word for macOS: what the pool declares does not decide about the guest.
#[tokio::test]
async fn the_template_decides_about_the_system() {
    let garm = Garm::new().await;
    let disk = crate::api::disk(&garm.api.dir, "mac.raw", 2);
    let mut template = crate::api::new_template("mac", disk);
    template.os = Some(mayfly::domain::GuestOs::Macos);
    template.handover = Some(mayfly::domain::Handover::Ssh);
    let key = garm.path("id_ed25519");
    let mut keygen = tokio::process::Command::new("ssh-keygen");
    crate::cli::run(keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key)).await.ends(0);
    template.ssh_key = Some(key);
    garm.api.parts.catalog.register(template).await.unwrap();
    let changes = json!({"image": "mac", "os_type": "linux", "arch": "arm64"});
    let ran = garm.create_with("garm-mac", &token("mac", 0), changes).ran().await.ends(0);
    assert_eq!((&ran.json()["os_type"], &ran.json()["os_arch"]), (&json!("linux"), &json!("arm64")));
    assert_eq!(garm.vms().await[0]["os"], "macos");
}
