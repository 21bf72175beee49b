use std::process::ExitCode;

fn main() -> ExitCode {
    mayfly::cli::run(std::env::args_os())
}
