//! Adapters as other schedulers start them: the program itself, with their environment and their standard input.

mod garm;
mod gate;
mod gitlab;
mod nesting;
mod shoes;
mod simulated_vms;
mod sshd;
