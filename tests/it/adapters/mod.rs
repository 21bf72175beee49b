//! Adapters as other schedulers start them: the program itself, with their environment and their standard input.

mod garm;
mod gate;
mod gitlab;
mod nesting;
mod played;
mod shoes;
mod sshd;
