mod conformance;
mod fake;
mod probe;
mod qemu;
mod tart;
