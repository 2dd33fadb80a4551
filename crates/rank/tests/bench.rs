//! The measuring commands answer a driver line by line, alone and as two ranks.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use mcl_data::generate::{GenerateSpec, generate};
use mcl_types::Seed;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::{Child, ChildStdin, Command, Stdio};

struct Bench {
    child: Child,
    input: ChildStdin,
    answers: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Bench {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_mcl-rank"))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, input, answers: BufReader::new(output).lines() }
    }

    fn answer(&mut self) -> serde_json::Value {
        serde_json::from_str(&self.answers.next().expect("an answer").unwrap()).unwrap()
    }

    fn turn(&mut self) -> serde_json::Value {
        writeln!(self.input, "go").unwrap();
        self.answer()
    }

    fn end(self) {
        let Self { mut child, input, .. } = self;
        drop(input);
        assert!(child.wait().unwrap().success());
    }
}

fn costs_something(answer: &serde_json::Value) {
    for key in ["wall_s", "cpu_s", "peak_bytes"] {
        assert!(answer[key].as_f64().unwrap() > 0.0, "{answer}");
    }
}

#[test]
fn a_turn_of_pictures_is_taken_for_each_line() {
    let folder = tempfile::tempdir().unwrap();
    generate(folder.path(), &GenerateSpec::objects(12, Seed::new(1)), &mut |_, _| {}).unwrap();
    let source = folder.path().to_str().unwrap();
    for views in ["exact", "level"] {
        let mut bench = Bench::start(&[
            "bench-loader",
            source,
            "--views",
            views,
            "--count",
            "10",
            "--image-size",
            "64",
            "--paced",
        ]);
        assert_eq!(bench.answer()["ready"], true);
        for _ in 0..2 {
            costs_something(&bench.turn());
        }
        bench.end();
    }
}

#[test]
fn two_ranks_take_a_turn_of_steps_together_and_end_together() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let size = ["--depth", "18", "--image-size", "32", "--images", "4", "--compute", "selective", "--paced"];
    let rank = |rank: &str| {
        Bench::start(&[&["bench-step", "--world", "2", "--port", &port, "--rank", rank], &size[..]].concat())
    };
    let (mut first, second) = (rank("0"), rank("1"));
    assert_eq!(first.answer()["ready"], true);
    costs_something(&first.turn());
    first.end();
    second.end();
}
