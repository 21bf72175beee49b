//! Who we are to registries: helper programs as they are found in the wild, and Amazon's registry with the roles and the
//! metadata service around it.

mod amazon;
mod helpers;
