use serde_json::{Value, json};

use super::*;
use crate::registry::oci::form::{
    ARTIFACT, LARGEST_CHUNK, OURS, SETTINGS, TART_DISK_V1 as DISK_V1, TART_OVERLAY as OVERLAY,
};

const CONFIG: &str = "application/vnd.cirruslabs.tart.config.v1";
const DISK: &str = "application/vnd.cirruslabs.tart.disk.v2";
const NVRAM: &str = "application/vnd.cirruslabs.tart.nvram.v1";
const UNCOMPRESSED_SIZE: &str = "org.cirruslabs.tart.uncompressed-size";
const UNCOMPRESSED_DIGEST: &str = "org.cirruslabs.tart.uncompressed-content-digest";
const DISK_SIZE: &str = "org.cirruslabs.tart.uncompressed-disk-size";

fn disk(content: &[u8], size: u64) -> Value {
    json!({"mediaType": DISK, "size": 100, "digest": Digest::of(&[content, b"lz4"].concat()).to_string(), "annotations": {
        UNCOMPRESSED_SIZE: size.to_string(), UNCOMPRESSED_DIGEST: Digest::of(content).to_string()}})
}

fn sound() -> Value {
    let part = |t: &str, content: &[u8]| json!({"mediaType": t, "size": content.len(), "digest": Digest::of(content).to_string()});
    json!({
        "schemaVersion": 2,
        "mediaType": MEDIA_TYPE,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "size": 2, "digest": Digest::of(b"{}").to_string()},
        "layers": [part(CONFIG, b"config"), disk(b"first", 500_000_000), disk(b"second", 7), disk(b"first", 500_000_000), part(NVRAM, b"nvram")],
        "annotations": {DISK_SIZE: "1000000007", "org.cirruslabs.tart.upload-time": "2026-01-01T00:00:00Z"},
    })
}

fn read(manifest: &Value) -> Result<Image, ManifestError> {
    parse(manifest.to_string().as_bytes(), Some(MEDIA_TYPE)).map(of)
}

fn of(document: Document) -> Image {
    match document {
        Document::Image(image) => image,
        Document::Index(list) => panic!("{list:?}"),
    }
}

#[test]
fn a_sound_manifest_is_read() {
    let image = read(&sound()).unwrap();
    assert_eq!(image.disk_size, 1_000_000_007);
    assert_eq!(image.kind, ImageFormat::Tart);
    let file = |layer: usize, role: Role, content: &[u8]| {
        let blob = Blob { digest: Digest::of(content), size: content.len() as u64 };
        LayerFile { layer, role, blob, content: blob, packed: false }
    };
    assert_eq!(image.files, [file(0, Role::Config, b"config"), file(4, Role::Nvram, b"nvram")]);
    assert_eq!(image.layers().map(|(layer, ..)| layer).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    let places: Vec<_> = image.chunks.iter().map(|c| (c.layer, c.offset, c.content.size)).collect();
    assert_eq!(places, [(1, 0, 500_000_000), (2, 500_000_000, 7), (3, 500_000_007, 500_000_000)]);
    assert_eq!(image.chunks[1].content.digest, Digest::of(b"second"));
    assert_eq!(image.chunks[1].blob.size, 100);

    // The registry's word counts where the manifest has none; the sum need not be given.
    let mut bare = sound();
    bare.as_object_mut().unwrap().remove("mediaType");
    bare.as_object_mut().unwrap().remove("annotations");
    assert_eq!(read(&bare).unwrap(), image);
    let with_charset = format!("{MEDIA_TYPE}; charset=utf-8");
    assert_eq!(parse(bare.to_string().as_bytes(), Some(&with_charset)).map(of).unwrap(), image);
    assert!(matches!(parse(bare.to_string().as_bytes(), None), Err(ManifestError::Foreign(_))));
}

#[test]
fn what_is_no_image_of_ours_is_named() {
    let with = |pointer: &str, value: Value| {
        let mut manifest = sound();
        *manifest.pointer_mut(pointer).unwrap() = value;
        read(&manifest).unwrap_err().to_string()
    };
    let tar = "application/vnd.oci.image.layer.v1.tar+gzip";
    for (pointer, value, expected) in [
        ("/mediaType", json!("application/vnd.oci.image.index.v1+json"), "manifests"),
        ("/mediaType", json!("application/vnd.docker.distribution.manifest.v2+json"), "docker"),
        ("/schemaVersion", json!(1), "schemaVersion"),
        ("/layers/1/mediaType", json!(DISK_V1), "no longer supported"),
        ("/layers/2/mediaType", json!(OVERLAY), "flat disk"),
        ("/layers/2/mediaType", json!(tar), tar),
        ("/layers/0/mediaType", json!(NVRAM), "0 configuration layers"),
        ("/layers/4/mediaType", json!(CONFIG), "2 configuration layers"),
        ("/layers", json!([]), "0 configuration layers"),
    ] {
        let error = with(pointer, value);
        assert!(error.contains(expected), "{pointer}: {error}");
    }
    let image = Digest::of(b"image").to_string();
    let platform = json!({"os": "darwin", "architecture": "arm64", "variant": "v8"});
    let list = json!({"schemaVersion": 2, "manifests": [
        {"mediaType": MEDIA_TYPE, "digest": image, "size": 1, "platform": platform},
        {"mediaType": document::INDEX, "digest": image, "size": 1},
    ]});
    let Ok(Document::Index(index)) = parse(list.to_string().as_bytes(), None) else { panic!("is a list") };
    assert_eq!((index.entries.len(), index.choose("arm64")), (1, Ok(Digest::of(b"image"))));
    let bad = list.to_string().replace(&image, "sha256:0");
    assert!(parse(bad.as_bytes(), None).unwrap_err().to_string().contains("entry 0"));
    let chart = json!({"schemaVersion": 2, "mediaType": MEDIA_TYPE, "artifactType": "application/vnd.acme.chart",
        "config": sound()["config"], "layers": [{"mediaType": tar, "size": 1, "digest": Digest::of(b"").to_string()}]});
    assert!(read(&chart).unwrap_err().to_string().contains("application/vnd.acme.chart"));
}

#[test]
fn what_lies_is_refused() {
    let with = |pointer: &str, value: Value| {
        let mut manifest = sound();
        *manifest.pointer_mut(pointer).unwrap() = value;
        read(&manifest).unwrap_err().to_string()
    };
    let size = |layer: usize| format!("/layers/{layer}/annotations/{UNCOMPRESSED_SIZE}");
    let content = format!("/layers/1/annotations/{UNCOMPRESSED_DIGEST}");
    let sum = format!("/annotations/{DISK_SIZE}");
    for (pointer, value, expected) in [
        ("/layers/1/digest", json!("sha256:../../etc/passwd"), "layer 1"),
        ("/layers/0/digest", json!("sha512:00"), "layer 0"),
        ("/layers/0/size", json!(LARGEST_CONFIG + 1), "layer 0"),
        ("/layers/0/size", json!(-1), "layer 0"),
        ("/layers/4/size", json!(0), "layer 4"),
        (&size(2), json!("0"), "layer 2"),
        (&size(2), json!("-1"), "layer 2"),
        (&size(2), json!("+1"), "layer 2"),
        (&size(2), json!("18446744073709551616"), "layer 2"),
        (&size(2), json!(u64::MAX.to_string()), "layer 2"),
        (&size(2), json!("8"), "add up to 1000000008"),
        // The same blob twice with different contents.
        (&size(1), json!("500000001"), "same digest as layer 1"),
        (&content, json!("sha256:0"), "layer 1"),
        (&content, json!(Digest::of(b"other").to_string()), "same digest as layer 1"),
        (&sum, json!("1000000006"), "add up to 1000000007"),
        (&sum, json!("many"), "many"),
        ("/layers/2/annotations", json!({}), "lacks the annotation"),
        ("/layers/2/annotations", Value::Null, "lacks the annotation"),
    ] {
        let error = with(pointer, value.clone());
        assert!(error.contains(expected), "{pointer} {value}: {error}");
    }

    let mut swapped = sound();
    swapped["layers"].as_array_mut().unwrap().swap(0, 1);
    assert!(read(&swapped).unwrap_err().to_string().contains("out of order"));

    let mut huge = sound();
    huge.as_object_mut().unwrap().remove("annotations");
    for layer in 1..=3 {
        huge["layers"][layer] = disk(&[layer as u8], LARGEST_CHUNK);
    }
    read(&huge).unwrap();
    let layers: Vec<Value> = (0..65_u8).map(|n| disk(&[n], LARGEST_CHUNK)).collect();
    huge["layers"].as_array_mut().unwrap().splice(1..4, layers);
    assert!(read(&huge).unwrap_err().to_string().contains("layer 65"));
}

#[test]
fn what_is_no_manifest_is_shown_and_bounded() {
    for bytes in [&b""[..], b"<html>", b"[]", b"null", b"{\"schemaVersion\":2", &[0xff; 1000], &vec![b' '; LARGEST + 1]]
    {
        let error = parse(bytes, Some(MEDIA_TYPE)).unwrap_err();
        assert!(matches!(error, ManifestError::NotJson { .. }), "{error}");
        assert!(error.to_string().len() < 1200);
    }
    assert!(parse(b"<html>", None).unwrap_err().to_string().contains("<html>"));
}

fn ours() -> Value {
    let packed = |what: &str, content: &[u8], size: u64| {
        json!({"mediaType": format!("{OURS}template.{what}.v1"), "size": 50, "digest": Digest::of(&[content, b"z"].concat()).to_string(),
            "annotations": {"dev.mayfly.template.uncompressed-size": size.to_string(),
            "dev.mayfly.template.uncompressed-digest": Digest::of(content).to_string()}})
    };
    json!({
        "schemaVersion": 2,
        "mediaType": MEDIA_TYPE,
        "artifactType": ARTIFACT,
        "config": {"mediaType": SETTINGS, "size": 2, "digest": Digest::of(b"{}").to_string()},
        "layers": [packed("kernel", b"k", 7), packed("initramfs", b"i", 8), packed("firmware", b"f", 9),
            packed("disk", b"first", 512), packed("disk", b"second", 100)],
        "annotations": {"dev.mayfly.template.disk-size": "612"},
    })
}

#[test]
fn an_image_of_ours_is_read() {
    let image = read(&ours()).unwrap();
    assert_eq!((image.kind, image.disk_size, image.config.size), (ImageFormat::Mayfly, 612, 2));
    let files: Vec<_> = image.files.iter().map(|f| (f.layer, f.role, f.content.size, f.blob.size)).collect();
    assert_eq!(files, [(0, Role::Kernel, 7, 50), (1, Role::Initramfs, 8, 50), (2, Role::Firmware, 9, 50)]);
    assert_eq!(image.chunks.iter().map(|c| (c.layer, c.offset)).collect::<Vec<_>>(), [(3, 0), (4, 512)]);

    // A disk alone is enough; a registry that drops the type leaves that of the configuration.
    let mut bare = ours();
    bare["layers"].as_array_mut().unwrap().drain(..3);
    bare.as_object_mut().unwrap().remove("artifactType");
    let image = read(&bare).unwrap();
    assert_eq!((image.kind, image.files.len(), image.chunks[1].layer), (ImageFormat::Mayfly, 0, 1));
}

#[test]
fn an_image_of_ours_that_lies_is_refused() {
    let with = |change: &dyn Fn(&mut Value)| {
        let mut manifest = ours();
        change(&mut manifest);
        read(&manifest).unwrap_err().to_string()
    };
    type Change<'a> = &'a dyn Fn(&mut Value);
    let disk = || ours()["layers"][3].clone();
    let cases: [(Change, &str); 14] = [
        (&|m| m["layers"][1] = m["layers"][0].clone(), "2 kernel layers, expected one at most"),
        (&|m| drop(m["layers"].as_array_mut().unwrap().drain(3..)), "0 disk layers"),
        (&|m| m["layers"].as_array_mut().unwrap().swap(0, 1), "out of order, expected kernel, initramfs"),
        (&|m| m["layers"].as_array_mut().unwrap().rotate_left(1), "out of order"),
        (&|m| m["layers"][4] = disk(), "add up to 1024"),
        (&|m| drop(m["layers"].as_array_mut().unwrap().pop()), "add up to 512"),
        (
            &|m| m["layers"][2]["mediaType"] = json!("application/vnd.mayfly.template.tpm.v1"),
            "layer 2 of the image has the type",
        ),
        (&|m| m["layers"][2]["mediaType"] = json!(DISK), "layer 2 of the image has the type"),
        (&|m| m["layers"][0]["annotations"] = json!({}), "layer 0 of the image lacks"),
        (&|m| m["layers"][0]["annotations"]["dev.mayfly.template.uncompressed-size"] = json!("8589934592"), "layer 0"),
        (&|m| m["layers"][3]["digest"] = m["layers"][0]["digest"].clone(), "same digest as layer 0"),
        (&|m| m["config"]["mediaType"] = json!("application/vnd.oci.empty.v1+json"), "configuration of type"),
        (&|m| m["config"]["size"] = json!(LARGEST_CONFIG + 1), "configuration that has"),
        (&|m| m["artifactType"] = json!("application/vnd.mayfly.template.v2"), "this version of Mayfly does not know"),
    ];
    for (at, (change, expected)) in cases.iter().enumerate() {
        let error = with(change);
        assert!(error.contains(expected), "{at}: {error}");
    }
}

#[test]
fn what_is_written_is_read_as_the_same() {
    for (manifest, time) in [(sound(), "2026-01-01T00:00:00Z"), (ours(), "2026-01-02T00:00:00Z")] {
        let image = read(&manifest).unwrap();
        let bytes = image.to_bytes(time).unwrap();
        assert_eq!(parse(&bytes, None).map(of), Ok(image.clone()));
        assert_eq!(time_of(&bytes, image.kind).as_deref(), Some(time));
        assert_eq!(image.to_bytes(time).unwrap(), bytes);
    }
    let ours = read(&ours()).unwrap();
    let text = String::from_utf8(ours.to_bytes("2026-01-02T00:00:00Z").unwrap()).unwrap();
    let golden = include_str!("golden-mayfly.json");
    assert_eq!(text, golden.trim_end(), "the format has changed");
}

/// Byte for byte what Tart would have written of the same VM: keys in order, compact, slashes escaped, an empty object where a
/// layer says nothing.
#[test]
fn a_manifest_of_tarts_is_written_as_tart_does() {
    let image = read(&sound()).unwrap();
    let text = String::from_utf8(image.to_bytes("2026-01-01T00:00:00Z").unwrap()).unwrap();
    assert_eq!(text, include_str!("golden-tart.json").trim_end());
}

#[test]
fn the_fuzzers_corpus() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/manifest");
    let good = ["index", "mayfly", "mayfly-by-its-config", "mayfly-disk-alone", "tart", "tart-without-sum"];
    let mut read = 0;
    for entry in std::fs::read_dir(corpus).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let parsed = parse(&std::fs::read(&path).unwrap(), None);
        assert_eq!(parsed.is_ok(), good.contains(&name), "{name}: {parsed:?}");
        read += 1;
    }
    assert!(read > good.len(), "{read} files");
}
