//! One vm for a runner as long as it lives, and no secret anywhere but in its guest.

use serde_json::json;
use tonic::Code;

use super::{HOST_SECRET, SECRET, Shoes, id, request};

const NAME: &str = "myshoes-0d2f6d4e-8b5c-4c6a-9a53-7a3f6a1b2c3d";

#[tokio::test]
async fn an_instance_is_a_vm_whose_guest_runs_the_setup_script() {
    let shoes = Shoes::new().await;
    let mut asked = request(NAME, SECRET);
    asked.resource_type = 5;
    let plugin = shoes.plugin().await;
    let (answer, ()) = tokio::join!(plugin.add(asked, None), async {
        let vms = shoes.until_vms(1, "queued").await;
        // The call goes on while the vm boots: an answer now would make the host look for a runner that cannot be there.
        shoes.booting(&vms[0]).await;
        let arguments = std::fs::read(format!("/proc/{}/cmdline", plugin.pid())).unwrap();
        assert!(!String::from_utf8_lossy(&arguments).contains(SECRET));
        use mayfly::domain::{Event, event::ReadyVia};
        for event in [Event::GuestReady { via: ReadyVia::GuestCall }, Event::GuestConfigured] {
            shoes.api.apply(id(&vms[0]), event).await;
        }
    });
    let answer = answer.unwrap();
    let vms = shoes.vms().await;
    let [vm] = vms.as_slice() else { panic!("{vms:#?}") };
    assert_eq!((answer.cloud_id.as_str(), answer.shoes_type.as_str()), (vm["id"].as_str().unwrap(), "mayfly"));
    assert_eq!(answer.resource_type, 5);
    assert_eq!((&vm["cpus"], &vm["memory_mib"], &vm["template"]), (&json!(2), &json!(256), &json!("micro")));
    assert_eq!(vm["runner"]["kind"], "script");
    assert!(vm["name"].as_str().unwrap().starts_with(NAME), "{vm:#}");
    let labels = json!({"owner": "myshoes", "myshoes.runner": NAME, "myshoes.labels": "self-hosted,linux"});
    assert_eq!(vm["labels"], labels);
    // Four of the five minutes that myshoes waits.
    let wait = vm["budgets"]["queue_seconds"].as_i64().unwrap();
    assert!((238..=240).contains(&wait), "{wait}");

    plugin.shut_down().await;
    for text in [vm.to_string(), shoes.logs()] {
        assert!(!text.contains(SECRET) && !text.contains(HOST_SECRET), "{text}");
    }
    for entry in std::fs::read_dir(shoes.api.dir.path()).unwrap().flatten() {
        if let Ok(bytes) = std::fs::read(entry.path()) {
            assert!(!bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes()), "{:?}", entry.path());
        }
    }
}

#[tokio::test]
async fn a_repetition_gets_the_same_vm_whatever_its_script() {
    let shoes = Shoes::new().await;
    let first = shoes.added(request(NAME, "one")).await;
    for script in ["one", "two, after a restart of the host"] {
        let again = shoes.add(request(NAME, script), None).await.unwrap();
        assert_eq!(again.cloud_id, first.cloud_id);
    }
    assert_eq!(shoes.vms().await.len(), 1);
}

/// A host that was killed left a plugin; its successor asks for the same runner while the first vm still waits.
#[tokio::test]
async fn plugins_that_ask_at_the_same_time_get_one_vm() {
    let shoes = Shoes::new().await;
    let plugins = [shoes.plugin().await, shoes.plugin().await, shoes.plugin().await];
    let [a, b, c] = &plugins;
    let (a, b, c, ()) = tokio::join!(
        a.add(request(NAME, "one"), None),
        b.add(request(NAME, "two"), None),
        c.add(request(NAME, "three"), None),
        async {
            let vms = shoes.until_vms(1, "queued").await;
            shoes.up(&vms[0]).await;
        }
    );
    let ids = [a, b, c].map(|answer| answer.unwrap().cloud_id);
    let vms = shoes.vms().await;
    assert_eq!(vms.len(), 1, "{vms:#?}");
    assert!(ids.iter().all(|id| vms[0]["id"] == id.as_str()), "{ids:?}");
}

/// When no runner appears, the host deletes the instance and asks again with the same name, also while the vm still ends.
#[tokio::test]
async fn a_name_whose_vm_is_gone_gets_a_new_one() {
    let shoes = Shoes::new().await;
    let mut seen = Vec::new();
    for round in 0..3 {
        let plugin = shoes.plugin().await;
        let (answer, ()) = tokio::join!(plugin.add(request(NAME, SECRET), None), async {
            let fresh = loop {
                let vms = shoes.vms().await;
                if let Some(vm) = vms.into_iter().find(|vm| vm["state"] == "queued") {
                    break vm;
                }
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            };
            shoes.up(&fresh).await;
        });
        plugin.shut_down().await;
        let id = answer.unwrap().cloud_id;
        assert!(!seen.contains(&id), "{id} again");
        shoes.delete(&id).await.unwrap();
        if round == 0 {
            // The first one is gone to its record, the others are still stopping.
            shoes.api.finish(id.parse().unwrap()).await;
        }
        seen.push(id);
    }
}

#[tokio::test]
async fn a_vm_that_cannot_run_is_an_error_that_is_repeated() {
    let shoes = Shoes::new().await;
    let plugin = shoes.plugin().await;
    let (answer, ()) = tokio::join!(plugin.add(request(NAME, SECRET), None), async {
        let vms = shoes.until_vms(1, "queued").await;
        shoes.api.finish(id(&vms[0])).await;
    });
    let status = answer.unwrap_err();
    assert_eq!(status.code(), Code::Internal, "{status}");
    assert!(status.message().contains("has ended"), "{status}");
    plugin.shut_down().await;
    assert!(!shoes.logs().contains(SECRET));
}
