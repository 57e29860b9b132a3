//! A comparison from its command line to its report, without root and without other peers.

use std::fs;
use std::process::Command;

use serde_json::Value;

#[test]
fn a_comparison_leaves_results_a_report_and_plots() {
    let out = std::env::temp_dir().join(format!("ringway-compare-{}", std::process::id()));
    let arguments = ["compare", "--peers", "direct,epoll-splice", "--only", "tcp-request-64x1"];
    let output = bench()
        .args(arguments)
        .args(["--seconds", "0.2", "--repeat", "2", "--out"])
        .arg(&out)
        .output()
        .expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let text = fs::read_to_string(out.join("results.json")).expect("results");
    let results: Value = serde_json::from_str(&text).expect("JSON");
    let runs = results["runs"].as_array().expect("runs");
    let order: Vec<_> = runs.iter().map(|run| run["peer"].as_str().expect("a name")).collect();
    assert_eq!(order, ["epoll-splice", "direct", "direct", "epoll-splice"]);
    for run in runs {
        assert!(run["outcome"]["operations"].as_u64() > Some(0), "{run}");
        assert_eq!(run["outcome"]["errors"].as_u64(), Some(0), "{run}");
        let proxied = run["peer"] == "epoll-splice";
        assert_eq!(run["cpu"].as_f64().is_some_and(|cpu| cpu > 0.0), proxied, "{run}");
    }

    let report = fs::read_to_string(out.join("report.md")).expect("a report");
    assert!(report.contains("## tcp-request-64x1, 1 worker, loopback"), "{report}");
    for ending in ["svg", "png"] {
        assert!(out.join(format!("plots/request-1-cpu.{ending}")).exists(), "{ending}");
    }

    let merged = out.join("merged");
    let file = out.join("results.json");
    let output = bench().arg("report").args([&file, &file]).arg("--out").arg(&merged).output();
    assert!(output.expect("it starts").status.success());
    assert!(merged.join("report.md").exists());
    fs::remove_dir_all(out).expect("ours");
}

#[test]
fn what_there_is_can_be_listed() {
    let output =
        bench().args(["compare", "--list", "--only", "udp-*"]).output().expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("udp-train-16x100") && !text.contains("tcp-idle"), "{text}");
    assert!(text.contains("direct"), "{text}");
}

#[test]
fn an_unknown_workload_is_an_error() {
    let output = bench().args(["compare", "--peers", "direct", "--only", "nothing"]).output();
    let output = output.expect("it starts");
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("--list"));
}

fn bench() -> Command {
    Command::new(env!("CARGO_BIN_EXE_bench"))
}
