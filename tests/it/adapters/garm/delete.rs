//! Deletions and lists: all that is this GARM's, and nothing else.

use serde_json::{Value, json};

use super::{Garm, POOL, token};

#[tokio::test]
async fn a_deletion_ends_every_vm_of_the_name_and_is_repeatable() {
    let garm = Garm::new().await;
    for version in ["", "v0.1.0", "v0.1.1"] {
        garm.create("garm-a1", &token(version, 0)).version(version).ran().await.ends(0);
        // Deletions of scale sets have neither a pool nor extra specs.
        let delete = garm.delete("garm-a1").version(version).pool("").variable("GARM_POOL_EXTRASPECS", "bnVsbA==");
        let ran = delete.ran().await.ends(0);
        assert_eq!(ran.out, "");
        assert_eq!(garm.vms().await, Vec::<Value>::new());
        let ran = delete.ran().await.ends(30);
        assert!(ran.err.contains("there is no vm of \"garm-a1\""), "{}", ran.err);
    }
}

#[tokio::test]
async fn what_belongs_to_others_is_never_touched() {
    let garm = Garm::new().await;
    garm.create("garm-a1", &token("one", 0)).ran().await.ends(0);
    let other = "11111111-2222-3333-4444-555555555555";
    garm.create("garm-a1", &token("one", 0)).controller(other).ran().await.ends(0);
    let by_hand = garm.api.post("/vms", &garm.api.admin, json!({"template": "micro", "name": "garm-a2"})).await.ok(201);
    for name in ["garm-a2", by_hand["id"].as_str().unwrap(), "garm-a", "*", "garm-a1\"", ""] {
        let code = if name.is_empty() { 1 } else { 30 };
        garm.delete(name).ran().await.ends(code);
    }
    assert_eq!(garm.vms().await.len(), 3);
    garm.delete("garm-a1").controller(other).ran().await.ends(0);
    assert_eq!(garm.vms().await.len(), 2);
    garm.call("RemoveAllInstances").pool("another-pool").ran().await.ends(0);
    assert_eq!(garm.vms().await.len(), 2);
    garm.call("RemoveAllInstances").ran().await.ends(0);
    let left = garm.vms().await;
    assert_eq!((left.len(), &left[0]["name"]), (1, &json!("garm-a2")));
    // Without the id of this GARM, nothing could be told from what belongs to others.
    let ran = garm.call("RemoveAllInstances").controller("").ran().await.ends(1);
    assert!(ran.err.contains("GARM_CONTROLLER_ID"), "{}", ran.err);
}

#[tokio::test]
async fn a_list_has_the_vms_of_one_pool_also_those_that_wait() {
    let garm = Garm::new().await;
    let long = format!("{}-0d2f", "x".repeat(240));
    let pools = [POOL, "my set ü/x-0d2f", "quoted \"set\" \\ x-0d2f", &long];
    for pool in pools {
        assert_eq!(garm.list(pool).ran().await.ends(0).out, "[]");
    }
    for (n, pool) in pools.into_iter().enumerate() {
        for k in 0..2 {
            let name = format!("garm-{n}-{k}");
            garm.create_with(&name, &token(&name, 0), json!({"pool_id": pool})).pool(pool).ran().await.ends(0);
        }
    }
    for (n, pool) in pools.into_iter().enumerate() {
        let listed = garm.list(pool).ran().await.ends(0).json();
        let expected = [1, 0]
            .map(|k| format!("garm-{n}-{k}"))
            .map(|name| json!({"provider_id": name, "name": name, "status": "running"}));
        assert_eq!(listed, json!(expected), "{pool}");
    }
    garm.delete("garm-0-1").ran().await.ends(0);
    assert_eq!(garm.list(POOL).ran().await.ends(0).json().as_array().unwrap().len(), 1);
    garm.list("").ran().await.ends(1);

    let get = |name: &str| garm.call("GetInstance").variable("GARM_INSTANCE_ID", name);
    assert_eq!(get("garm-1-1").ran().await.ends(0).json()["status"], "running");
    get("garm-0-1").ran().await.ends(30);
    let start = |name: &str| garm.call("StartInstance").variable("GARM_INSTANCE_ID", name);
    assert_eq!(start("garm-1-1").ran().await.ends(0).out, "");
    start("garm-0-1").ran().await.ends(30);
    let ran = garm.call("StopInstance").variable("GARM_INSTANCE_ID", "garm-1-1").ran().await.ends(1);
    assert!(ran.err.contains("delete it"), "{}", ran.err);
}

/// More than one page of the API.
#[tokio::test]
async fn a_list_is_complete() {
    let garm = Garm::new().await;
    garm.create("garm-first", &token("x", 0)).ran().await.ends(0);
    let labels = garm.vms().await[0]["labels"].clone();
    for n in 0..230 {
        let mut labels = labels.clone();
        labels["garm.name"] = format!("garm-{n}").into();
        let body = json!({"template": "micro", "labels": labels});
        garm.api.post("/vms", &garm.api.create, body).await.ok(201);
    }
    let listed = garm.list(POOL).ran().await.ends(0).json();
    assert_eq!(listed.as_array().unwrap().len(), 231);
}
