mod conformance;
mod fake;
mod qemu;
mod tart;
