mod conformance;
mod fake;
mod qemu;
