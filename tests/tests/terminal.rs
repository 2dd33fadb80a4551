//! What a person has at a terminal: `mcl watch`, `status`, completions, manual pages, logs, pipes that close.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use mcl_system_tests::cluster::free_port;
use mcl_system_tests::processes;
use mcl_system_tests::pty::{Terminal, hang_up};
use mcl_system_tests::{Sandbox, committed, error_of};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::{Command, Stdio};

const LONG: &str = "train.steps=100000";

#[test]
fn a_run_is_watched_and_drained_from_a_terminal() {
    let sandbox = Sandbox::new();
    let mut run = sandbox.start("first", 2, &[LONG]);
    run.until("ten steps are committed", |dir| committed(dir) >= 10);
    let mut watch = Terminal::start(&sandbox, &["watch", "first"], (24, 80), &[]);
    let text = watch.until("the run", |t| t.contains("training") && t.contains("Ranks 2"));
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("first  training  generation 1, term 1"), "{text}");
    assert!(lines[0].trim_end().contains("http://127.0.0.1:"), "{text}");
    for part in
        ["loss", "full size", "1/4 size", "momentum", "images/s", "worker-0/cpu", "worker-1/cpu", "q quit"]
    {
        assert!(text.contains(part), "`{part}` is not in:\n{text}");
    }
    assert!(watch.has_colour());
    watch.type_keys("3");
    watch.until("why the generation came", |t| t.contains("from step") && t.contains("the job began"));
    watch.type_keys("\t");
    watch.until("checkpoints", |t| t.contains("after steps") && t.contains("newest"));
    // A larger window shows more of the same.
    watch.resize(50, 160);
    watch.type_keys("1");
    watch.until("all 50 rows", |t| t.lines().count() == 50 && t.contains("worker-1/cpu"));
    watch.type_keys("?");
    watch.until("help", |t| t.contains("drain: finish the step, checkpoint, stop"));
    watch.type_keys(" /worker-1\r");
    watch.until("one rank", |t| t.contains("filter: worker-1") && !t.contains("worker-0/cpu"));
    watch.type_keys("\x1b");
    watch.until("all ranks", |t| t.contains("worker-0/cpu"));
    watch.type_keys("d");
    watch.until("the question", |t| t.contains("drain first?"));
    watch.type_keys("y");
    let drained = run.end();
    assert_eq!(drained.status.code(), Some(130), "{}", error_of(&drained));
    // Nobody has it now: its files tell how it ended.
    watch.until("the end", |t| t.contains("interrupted") && t.contains("files of"));
    watch.type_keys("p");
    watch.until("a refusal", |t| t.contains("pause: no coordinator answers"));
    watch.type_keys("q");
    assert!(watch.end().success());
    assert!(watch.is_restored(), "{}", watch.text());
}

/// A key that comes while a change of size is still to be looked at is not left lying until the next one.
#[test]
fn a_key_is_heard_beside_a_change_of_size() {
    let sandbox = Sandbox::new();
    std::fs::create_dir(sandbox.path("empty")).unwrap();
    let mut watch = Terminal::start(&sandbox, &["watch", "empty"], (24, 80), &[("NO_COLOR", "1")]);
    watch.until("the view", |t| t.contains("no coordinator has this run now"));
    let helped = |t: &str| t.contains("drain: finish the step, checkpoint, stop");
    for round in 0..200 {
        watch.resize(24 + round % 2, 80);
        watch.type_keys("?");
        watch.until("help", helped);
        watch.resize(24 + round % 2, 81);
        watch.type_keys(" ");
        watch.until("the view again", |t| !helped(t));
    }
}

#[test]
fn the_terminal_is_restored_whatever_ends_the_watch() {
    let sandbox = Sandbox::new();
    std::fs::create_dir(sandbox.path("empty")).unwrap();
    let open = || {
        let watch = Terminal::start(&sandbox, &["watch", "empty"], (24, 80), &[("NO_COLOR", "1")]);
        watch.until("the view", |t| t.contains("no coordinator has this run now"));
        assert!(!watch.is_restored() && !watch.has_colour());
        watch
    };
    let mut typed = open();
    typed.type_keys("\x03");
    assert!(typed.end().success() && typed.is_restored());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let mut told = open();
        processes::signal(told.pid(), signal);
        assert!(told.end().success() && told.is_restored(), "{signal}");
    }
    // A window that is closed leaves nothing to restore, and is no reason to break down.
    let gone = hang_up(&sandbox, &["watch", "empty"], "unattended");
    assert!(gone.signal().is_none() && gone.exit_code() <= 1, "{gone:?}");
}

#[test]
fn a_coordinator_that_is_away_is_said_and_seen_again() {
    let sandbox = Sandbox::new();
    let at = free_port(IpAddr::V4(Ipv4Addr::LOCALHOST)).to_string();
    let url = format!("http://{at}");
    let start = || {
        let arguments =
            ["coordinator", "--run-dir", "run", "--checkpoint", "http://127.0.0.1:9", "--listen", &at];
        sandbox.command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let mut watch = Terminal::start(&sandbox, &["watch", "--coordinator", &url], (24, 100), &[]);
    watch.until("that nobody answers", |t| t.contains("does not answer"));
    let mut first = start();
    watch.until("an idle coordinator", |t| t.contains("idle  generation 0, term 1"));
    first.kill().unwrap();
    first.wait().unwrap();
    watch.until("that it is gone", |t| t.contains("does not answer") && t.contains("term 1"));
    let mut second = start();
    watch.until("its successor", |t| t.contains("term 2") && !t.contains("does not answer"));
    watch.type_keys("q");
    assert!(watch.end().success());
    second.kill().unwrap();
    second.wait().unwrap();
}

#[test]
fn without_a_terminal_a_change_is_a_line() {
    let sandbox = Sandbox::new();
    let mut run = sandbox.start("first", 1, &[]);
    run.until("its job", |dir| dir.join("job.toml").is_file());
    let json = sandbox.command(&["watch", "first", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let plain = sandbox.run(&["watch", "first"]);
    assert!(run.end().status.success());
    let text = String::from_utf8(plain.stdout).unwrap();
    assert!(plain.status.success(), "{text}");
    assert!(!text.contains('\x1b'), "{text:?}");
    let last = text.lines().last().unwrap();
    assert!(last.starts_with("first: done (all 20 steps are committed)  20/20 steps"), "{text}");
    let json = json.wait_with_output().unwrap();
    assert!(json.status.success());
    let lines: Vec<Value> =
        String::from_utf8(json.stdout).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let last = lines.last().unwrap();
    assert_eq!((&last["event"], &last["phase"]), (&"status".into(), &"done".into()), "{last}");
    assert_eq!(last["committed_steps"], 20);
    // Once it is over its files say the same, and a checkpoint more.
    let after = sandbox.ok(&["watch", "first"]);
    assert_eq!(after.lines().count(), 1, "{after}");
    sandbox.fails(2, &["expected a run directory"], &["watch", "nowhere"]);
    sandbox.fails(2, &["--coordinator URL"], &["watch"]);
}

#[test]
fn status_is_coloured_on_a_terminal_alone() {
    let sandbox = Sandbox::new();
    let at = free_port(IpAddr::V4(Ipv4Addr::LOCALHOST)).to_string();
    let url = format!("http://{at}");
    let arguments =
        ["coordinator", "--run-dir", "run", "--checkpoint", "http://127.0.0.1:9", "--listen", &at];
    let mut daemon =
        sandbox.command(&arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(daemon.stdout.take().unwrap()), &mut line)
        .unwrap();
    let status = ["status", "--coordinator", &url];
    assert_eq!(sandbox.ok(&status), "no job: idle (no job submitted)\n");
    for (environment, coloured) in
        [(&[][..], true), (&[("NO_COLOR", "1")][..], false), (&[("TERM", "dumb")][..], false)]
    {
        let mut shown = Terminal::start(&sandbox, &status, (24, 80), environment);
        assert!(shown.end().success());
        assert!(shown.text().contains("no job: idle (no job submitted)"), "{}", shown.text());
        assert_eq!(shown.has_colour(), coloured, "{environment:?}");
    }
    daemon.kill().unwrap();
    daemon.wait().unwrap();
}

#[test]
fn bash_completes_verbs_and_options() {
    let sandbox = Sandbox::new();
    std::fs::write(sandbox.path("mcl.bash"), sandbox.ok(&["completions", "bash"])).unwrap();
    // What bash does at the tab key: the words, and which of them is completed.
    let complete = |words: &[&str]| {
        let script = r#"source mcl.bash
            COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
            function=$(complete -p mcl | sed 's/.*-F \([^ ]*\).*/\1/')
            "$function" mcl "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
            printf '%s\n' "${COMPREPLY[@]}""#;
        let output = Command::new("bash")
            .args(["--norc", "-c", script, "bash"])
            .args(words)
            .current_dir(sandbox.path(""))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", error_of(&output));
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(complete(&["mcl", "stat"]), ["status"]);
    assert_eq!(complete(&["mcl", "checkpoint", "ver"]), ["verify"]);
    assert_eq!(complete(&["mcl", "status", "--co"]), ["--coordinator"]);
    let formats = complete(&["mcl", "checkpoint", "export", "--format", ""]);
    assert!(formats.contains(&"torchvision-fpn".to_owned()), "{formats:?}");
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        let script = sandbox.ok(&["completions", shell]);
        assert!(script.contains("status") && script.contains("checkpoint"), "{shell}");
    }
}

#[test]
fn every_verb_has_a_manual_page_that_man_can_show() {
    let sandbox = Sandbox::new();
    sandbox.ok(&["man", "--out", "man/man1"]);
    let pages: Vec<_> =
        std::fs::read_dir(sandbox.path("man/man1")).unwrap().map(|e| e.unwrap().path()).collect();
    let names: Vec<_> = pages.iter().map(|p| p.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    for name in ["mcl.1", "mcl-run.1", "mcl-status.1", "mcl-data-pack.1", "mcl-checkpoint-export.1"] {
        assert!(names.contains(&name.to_owned()), "{name} is not in {names:?}");
    }
    let groff = |page: &Path| Command::new("groff").args(["-man", "-Tutf8", "-ww", "-z"]).arg(page).output();
    for page in &pages {
        let text = std::fs::read_to_string(page).unwrap();
        assert!(text.contains(".SH NAME") && text.contains(".SH SYNOPSIS"), "{}", page.display());
        // Only where the machine has one.
        let Ok(formatted) = groff(page) else { continue };
        assert!(formatted.status.success() && formatted.stderr.is_empty(), "{}", error_of(&formatted));
    }
    let man =
        Command::new("man").args(["-P", "cat", "-l"]).arg(sandbox.path("man/man1/mcl-status.1")).output();
    if let Some(shown) = man.ok().filter(|o| o.status.success()) {
        let text = String::from_utf8_lossy(&shown.stdout).into_owned();
        assert!(text.contains("What a coordinator is doing"), "{text}");
    }
}

/// A pipe whose reader has had enough.
fn nobody_reads() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    Stdio::from(writer)
}

#[test]
fn whoever_reads_may_have_had_enough() {
    let sandbox = Sandbox::new();
    let unread = |arguments: &[&str]| {
        let mut command = sandbox.command(arguments);
        let status = command.stdout(nobody_reads()).stderr(nobody_reads()).status().unwrap();
        assert_eq!(status.code(), Some(0), "mcl {arguments:?}");
    };
    unread(&["run", "job.toml", "--run-dir", "run", "--devices", "cpu"]);
    unread(&["data", "pack", "objects", "--out", "shards"]);
    for arguments in [
        &["validate", "job.toml"][..],
        &["data", "inspect", "objects"],
        &["data", "index", "shards"],
        &["data", "preview", "job.toml", "--out", "sheet.png"],
        &["ledger", "verify", "run"],
        &["checkpoint", "list", "run"],
        &["checkpoint", "verify", "run"],
        &["checkpoint", "digest", "run"],
        &["checkpoint", "export", "run", "--out", "out.safetensors"],
        &["certs", "init", "ca"],
        &["doctor"],
        &["completions", "bash"],
        &["eval", "features", "run", "--picture", "objects/images/00000.jpg", "--out", "maps.safetensors"],
    ] {
        unread(arguments);
    }
}

#[test]
fn logs_are_json_lines_where_that_is_asked_for_and_ranks_say_whose_they_are() {
    let sandbox = Sandbox::new();
    let arguments =
        ["--log", "json", "run", "job.toml", "--devices", "cpu", "--workers", "2", "--run-dir", "first"];
    let output = sandbox.run(&arguments);
    assert!(output.status.success(), "{}", error_of(&output));
    let parse = |text: &str| -> Vec<Value> {
        let line = |l: &str| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"));
        text.lines().map(line).collect()
    };
    let own = parse(&error_of(&output));
    assert!(own.iter().any(|l| l["fields"]["total_steps"] == 20), "{own:#?}");
    // A coordinator that leaves when all is done is not missed.
    assert!(!own.iter().any(|l| l.to_string().contains("no coordinator")), "{own:#?}");
    let mut numbers = Vec::new();
    for log in ["coordinator", "checkpoint", "worker-0", "worker-1"] {
        let text = std::fs::read_to_string(sandbox.path(&format!("first/logs/{log}.log"))).unwrap();
        for line in parse(&text).iter().filter(|l| l["target"] == "rank") {
            assert_eq!(
                (&line["fields"]["worker"], &line["fields"]["device"]),
                (&log.into(), &"cpu".into()),
                "{text}"
            );
            numbers.extend(line["fields"]["rank"].as_u64());
        }
    }
    // The one that hosts the store of the generation says so.
    assert!(numbers.contains(&0), "{numbers:?}");
    // The last word is a line too.
    let failed = sandbox.run(&["--log", "json", "status", "--coordinator", "http://127.0.0.1:9"]);
    assert_eq!(failed.status.code(), Some(1));
    let said = parse(&error_of(&failed));
    assert!(said[0]["fields"]["message"].as_str().unwrap().contains("127.0.0.1:9"), "{said:?}");
    // What RUST_LOG asks for is what there is.
    let quiet = sandbox.command(&["ledger", "verify", "first"]).env("RUST_LOG", "off").output().unwrap();
    assert!(quiet.status.success() && quiet.stderr.is_empty(), "{}", error_of(&quiet));
}
