//! Any bytes, as a VM's configuration: what is taken is written and read again as the same, and nothing panics.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mayfly_fuzz::domain::tart_config::TartConfig;

fuzz_target!(|input: &[u8]| {
    let Ok(config) = TartConfig::parse(input) else { return };
    assert!(u64::from(config.memory_mib()) << 20 >= config.memory_bytes || config.memory_mib() == u32::MAX);
    assert!(config.too_small(u32::MAX, u32::MAX).is_none() || config.memory_min_bytes > u64::from(u32::MAX) << 20);
    let again = TartConfig::parse(&config.to_bytes()).expect("what was written is read");
    assert_eq!(again, TartConfig { unknown: Vec::new(), ..config });
});
