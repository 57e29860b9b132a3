use std::process::ExitCode;

fn main() -> ExitCode {
    ringway::control::cli::main()
}
