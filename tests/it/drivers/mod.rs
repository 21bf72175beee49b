#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod cloud_hypervisor;
mod conformance;
mod fake;
mod macosvm;
mod probe;
mod qemu;
mod tart;
