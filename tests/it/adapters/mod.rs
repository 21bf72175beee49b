//! Adapters as other schedulers start them: the program itself, with their environment and their standard input.

mod garm;
