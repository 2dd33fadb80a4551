//! What a person has at a terminal besides the verbs themselves: completions and manual pages.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use mcl_system_tests::{Sandbox, error_of};
use std::path::Path;
use std::process::Command;

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
