//! Network modes, as Tart is told of them.

use mayfly::{
    domain::{NetworkMode, NetworkPolicy},
    drivers::tart::Network,
};

use super::*;

#[tokio::test]
async fn each_mode_is_told_to_tart() {
    let rig = TartRig::with(|settings| {
        settings.network = Network::Softnet { allow: vec!["10.0.0.0/8".to_owned()], block: Vec::new() };
    });
    let allow = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect();
    for (mode, expected) in [
        (NetworkMode::Isolated, vec!["--net-softnet-allow=@host", "--net-softnet-block=0.0.0.0/0", "--net-softnet"]),
        (NetworkMode::Internet, vec!["--net-softnet-allow=10.0.0.0/8,192.168.7.0/24", "--net-softnet"]),
        (NetworkMode::Host, vec![]),
    ] {
        let mut spec = rig.linux();
        spec.network.policy = NetworkPolicy { mode, allow: allow(&["192.168.7.0/24", "gitea.corp:3000"]) };
        let spec = rig.started(spec).await;
        let pid = rig.pid(&spec.name).as_raw_nonzero().get();
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        let words: Vec<String> = line.split(|b| *b == 0).map(|word| String::from_utf8_lossy(word).into()).collect();
        let told: Vec<&str> = words.iter().map(String::as_str).filter(|word| word.starts_with("--net")).collect();
        assert_eq!(told, expected, "{mode}");
        rig.driver.destroy(&spec.name).await.unwrap();
    }
}
