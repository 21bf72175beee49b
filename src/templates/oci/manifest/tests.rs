use serde_json::{Value, json};

use super::*;

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
    parse(manifest.to_string().as_bytes(), Some(MEDIA_TYPE))
}

#[test]
fn a_sound_manifest_is_read() {
    let image = read(&sound()).unwrap();
    assert_eq!(image.disk_size, 1_000_000_007);
    assert_eq!(image.config, Blob { digest: Digest::of(b"config"), size: 6 });
    assert_eq!(image.nvram, Blob { digest: Digest::of(b"nvram"), size: 5 });
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
    assert_eq!(parse(bare.to_string().as_bytes(), Some(&with_charset)).unwrap(), image);
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
        ("/mediaType", json!("application/vnd.oci.image.index.v1+json"), "list of images"),
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
    let list = json!({"schemaVersion": 2, "manifests": []});
    assert!(read(&list).unwrap_err().to_string().contains("list of images"));
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
