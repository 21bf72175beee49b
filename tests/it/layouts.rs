//! Templates in other programs' layouts, as their users ask for them: through the service and the command line.

use std::{fs, path::Path, process::Command};

use serde_json::{Value, json};

use crate::support::Serve;

const IDENTITY: &str = "YnBsaXN0MDDRAQJURUNJRBQAAAAAAAAAABEiM0RVZneICAsQAAAAAAAAAQEAAAAAAAAAAwAAAAAAAAAAAAAAAAAAACE=";
const MODEL: &str = "YnBsaXN0MDDTAQIDBAUGXxAZRGF0YVJlcHJlc2VudGF0aW9uVmVyc2lvbl8QD1BsYXRmb3JtVmVyc2lvbl8QEk1pbmltdW1TdXBwb3J0ZWRPUxQAAAAAAAAAAAAAAAAAAAABEAKjBwgIEAwQAAgPKz1SY2VpawAAAAAAAAEBAAAAAAAAAAkAAAAAAAAAAAAAAAAAAABt";

fn vm(dir: &Path) {
    fs::create_dir(dir).unwrap();
    let config = json!({"version": 1, "ecid": IDENTITY, "hardwareModel": MODEL, "cpuCountMin": 2, "cpuCount": 4,
        "memorySizeMin": 4_294_967_296_u64, "memorySize": 8_589_934_592_u64, "macAddress": "7a:65:e4:3f:b2:51"});
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    fs::write(dir.join("disk.img"), vec![7; 1 << 20]).unwrap();
    fs::write(dir.join("nvram.bin"), vec![5; 1 << 16]).unwrap();
}

async fn mayfly(serve: &Serve, args: &[&str]) -> (Option<i32>, String, String) {
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_mayfly"))
        .args(["template"])
        .args(args)
        .args(["--url", &serve.url])
        .env("MAYFLY_TOKEN", serve.token())
        .output()
        .await
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_goes_from_tart_to_macosvm_and_to_shoes_vz() {
    let serve = Serve::start(&[("MAYFLY_DRIVERS__QEMU__ENABLED", "false")]).await;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    vm(&dir.path().join("vm"));

    let request = json!({"name": "base", "layout": "tart", "path": at("vm")});
    let (status, answer) = serve.post("/templates/import", request.clone()).await;
    assert_eq!(status, 201, "{answer}");
    assert_eq!((&answer["template"]["cpus"], &answer["notices"]), (&json!(4), &json!([])));
    assert_eq!(serve.post("/templates/import", request).await.0, 200, "the same again");

    let (code, out, err) = mayfly(&serve, &["export", "base", &at("machine"), "--layout", "macosvm"]).await;
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("vm.json") && out.lines().count() == 3, "{out}");
    assert!(err.contains("cpuCountMin is 2"), "{err}");

    let (code, out, err) =
        mayfly(&serve, &["import", &at("machine"), "--layout", "macosvm", "--as", "back", "--mac", "keep", "--json"])
            .await;
    assert_eq!(code, Some(0), "{err}");
    let back: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(back["template"]["memory_mib"], 8192);

    let export = json!({"layout": "shoes-vz", "path": at("bundle")});
    let (status, answer) = serve.post("/templates/back/export", export.clone()).await;
    assert_eq!((status, answer["files"].as_array().map(Vec::len)), (200, Some(5)), "{answer}");
    assert!(fs::read(dir.path().join("bundle/Disk.img")).unwrap() == vec![7; 1 << 20]);

    for (path, body, status, code) in [
        ("/templates/back/export", export, 409, "destination.exists"),
        ("/templates/none/export", json!({"layout": "tart", "path": at("x")}), 404, "template.not_found"),
        ("/templates/back/export", json!({"layout": "raw", "path": at("x")}), 422, "layout.guest_unsupported"),
        ("/templates/back/export", json!({"layout": "raw", "path": at("x"), "mac": "keep"}), 400, "request.invalid"),
        ("/templates/back/export", json!({"layout": "tart", "path": "x"}), 400, "request.invalid"),
        ("/templates/back/export", json!({"layout": "vhd", "path": at("x")}), 400, "request.invalid"),
        ("/templates/import", json!({"name": "x", "layout": "tart", "path": at("none")}), 422, "template.invalid"),
        (
            "/templates/import",
            json!({"name": "x", "layout": "tart", "path": at("vm"), "mac": "keep"}),
            400,
            "request.invalid",
        ),
        (
            "/templates/import",
            json!({"name": "base", "layout": "macosvm", "path": at("machine")}),
            409,
            "template.exists",
        ),
    ] {
        let (answered, problem) = serve.post(path, body.clone()).await;
        assert_eq!((answered, &problem["code"]), (status, &json!(code)), "{body}: {problem}");
    }
    assert!(!dir.path().join("x").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_is_taken_out_of_a_golden_image() {
    let serve = Serve::start(&[]).await;
    let dir = tempfile::tempdir().unwrap();
    let run = |program: &str, args: &[&str]| {
        let out = Command::new(program).args(args).current_dir(dir.path()).output().unwrap();
        assert!(out.status.success(), "{program}: {}", String::from_utf8_lossy(&out.stderr));
    };
    fs::create_dir_all(dir.path().join("tree/boot")).unwrap();
    fs::write(dir.path().join("tree/boot/vmlinuz-6.1.0"), "a kernel").unwrap();
    fs::write(dir.path().join("tree/boot/initrd.img-6.1.0"), "an initrd").unwrap();
    run("mke2fs", &["-q", "-F", "-t", "ext4", "-d", "tree", "base.raw", "8M"]);
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "golden.qcow2"]);

    let image = dir.path().join("golden.qcow2");
    let args = ["import", image.to_str().unwrap(), "--layout", "qcow2", "--as", "golden", "--extract-kernel", "--json"];
    let (code, out, err) = mayfly(&serve, &[&args[..], &["--handover", "ssh"]].concat()).await;
    assert_eq!(code, Some(0), "{out}{err}");
    let answer: Value = serde_json::from_str(&out).unwrap();
    let template = &answer["template"];
    assert_eq!((&template["kernel"], &template["initramfs"]), (&json!(true), &json!(true)));
    assert!(template["cmdline"].as_str().unwrap().starts_with("root=/dev/vda ro console="), "{template}");
    let files = serve.dir.join("templates").join(template["digest"].as_str().unwrap().replace(':', "-"));
    assert_eq!(fs::read(files.join("kernel")).unwrap(), b"a kernel");
    assert_eq!(fs::read(files.join("initramfs")).unwrap(), b"an initrd");

    // Out again, with what boots it beside it, and in again by that.
    let raw = dir.path().join("out.raw").to_str().unwrap().to_owned();
    let (status, answer) = serve.post("/templates/golden/export", json!({"layout": "raw", "path": raw})).await;
    assert_eq!((status, answer["files"].as_array().map(Vec::len)), (200, Some(3)), "{answer}");
    assert_eq!(fs::read(format!("{raw}.kernel")).unwrap(), b"a kernel");
    assert!(fs::read(&raw).unwrap() == fs::read(dir.path().join("base.raw")).unwrap());
    let (status, answer) = serve.post("/templates/import", json!({"name": "raw", "layout": "raw", "path": raw})).await;
    assert_eq!((status, &answer["template"]["kernel"]), (201, &json!(true)), "{answer}");
}

/// An image that somebody else put into a directory must not bring other files of the host along: what its name points at, and
/// what lies beside it, could be read back from the template.
#[tokio::test(flavor = "multi_thread")]
async fn no_link_is_followed_at_an_image_or_beside_it() {
    let serve =
        Serve::start(&[("MAYFLY_DRIVERS__QEMU__ENABLED", "false"), ("MAYFLY_DRIVERS__FAKE__ENABLED", "true")]).await;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let secret = serve.dir.join("mayfly.db");
    fs::write(at("good.raw"), vec![7; 1 << 20]).unwrap();
    let out =
        Command::new("qemu-img").args(["convert", "-O", "qcow2"]).args([at("good.raw"), at("good.qcow2")]).output();
    assert!(out.unwrap().status.success());
    let import = async |layout: &str, name: &str| {
        let body = json!({"name": "x", "layout": layout, "path": at(name), "driver": "fake"});
        serve.post("/templates/import", body).await
    };
    for (layout, name, target) in [
        ("raw", "link.raw", &secret),
        ("raw", "link-to-good.raw", &at("good.raw")),
        ("qcow2", "link.qcow2", &at("good.qcow2")),
    ] {
        std::os::unix::fs::symlink(target, at(name)).unwrap();
        let (status, problem) = import(layout, name).await;
        assert_eq!((status, &problem["code"]), (422, &json!("template.invalid")), "{name}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains("symbolic link"), "{problem}");
    }
    // A whole directory, too.
    vm(&at("vm"));
    std::os::unix::fs::symlink(at("vm"), at("vm-link")).unwrap();
    let body = json!({"name": "x", "layout": "tart", "path": at("vm-link")});
    let (status, problem) = serve.post("/templates/import", body).await;
    assert_eq!(status, 422, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("symbolic link"), "{problem}");

    for (layout, image) in [("raw", "good.raw"), ("qcow2", "good.qcow2")] {
        for suffix in ["kernel", "initramfs", "firmware"] {
            let beside = at(&format!("{image}.{suffix}"));
            std::os::unix::fs::symlink("/etc/shadow", &beside).unwrap();
            let (status, problem) = import(layout, image).await;
            assert_eq!((status, &problem["code"]), (422, &json!("template.invalid")), "{suffix}: {problem}");
            let detail = problem["detail"].as_str().unwrap();
            assert!(detail.contains("symbolic link") && detail.contains(suffix), "{problem}");
            fs::remove_file(beside).unwrap();
        }
    }
    // Named by the caller, as a part of a template.
    let body = json!({"name": "x", "disk": at("good.raw"), "kernel": at("link.raw"), "driver": "fake"});
    let (status, problem) = serve.post("/templates", body).await;
    assert_eq!(status, 422, "{problem}");
    assert!(problem["errors"][0]["detail"].to_string().contains("symbolic link"), "{problem}");
    assert_eq!(serve.get("/templates").await["items"], json!([]));
    assert_eq!(import("raw", "good.raw").await.0, 201);
}
