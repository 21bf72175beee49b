//! The driver over the real program, where it can be run: `make conformance-cloud-hypervisor`. On a machine whose KVM runs no operating
//! system, its guests are those that need none.

use std::path::PathBuf;

use mayfly::{
    domain::{Code, VmId},
    drivers::{Driver as _, ErrorKind},
};

use super::{
    super::conformance,
    causes, network,
    rig::{DEAF, VmmRig},
};

pub fn program() -> PathBuf {
    std::env::var_os("MAYFLY_TEST_CLOUD_HYPERVISOR")
        .expect("MAYFLY_TEST_CLOUD_HYPERVISOR is the path of a program")
        .into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a real cloud-hypervisor, named by MAYFLY_TEST_CLOUD_HYPERVISOR, and /dev/kvm"]
async fn the_real_program_is_driven_as_its_double_is() {
    let rig = VmmRig::of(&program());
    let version = rig.driver.probe(true).await.expect("it runs a guest that writes a word").version;
    let cases = conformance::as_far_as_booted(&rig).await;
    causes(&rig).await;
    network(&rig).await;

    let mut wrong = rig.bare(VmId::mint(), DEAF);
    let text = rig.dir.path().join("text");
    std::fs::write(&text, "no kernel").unwrap();
    wrong.files.kernel = Some(text);
    let error = rig.refused(&wrong).await;
    assert_eq!((error.kind, error.code), (ErrorKind::Permanent, Code::TemplateInvalid), "{error}");
    rig.driver.destroy(&wrong.name).await.unwrap();
    eprintln!(
        "{version} is driven: {cases} cases of the conformance list (all but the two in which an operating system hears the power \
         button), every cause of an end, the network's namespace, a kernel that is none"
    );
}
