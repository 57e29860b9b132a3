use std::process::ExitCode;

fn main() -> ExitCode {
    ringway::ring::sys::memory::give_back_large_blocks();
    // kube asks rustls for the process's provider; whatever is ours names it. Nobody has set
    // another before.
    _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    ringway::control::cli::main()
}
