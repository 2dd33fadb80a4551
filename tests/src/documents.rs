//! Documents whose commands are run as they stand: blocks of `sh`, a document after another, each in a shell of its own.
//!
//! Invariants: no block is passed over in silence: what cannot be run here says so above itself, as a comment that is not
//! shown (`<!-- not run: WHY -->`); a `make` line is not run, since tests run inside one, but its target has to be there.
//! Daemons go on in the background until the document's end. Left out: which documents, and what they find
//! (`tests/documents.rs`).

use crate::{Sandbox, mcl};
use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The project's folder.
pub fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// A document's commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// As they stand.
    pub text: String,
    /// Why they are not run, where they are not.
    pub excuse: Option<String>,
}

/// The blocks of `sh` in a text.
pub fn blocks(markdown: &str) -> Vec<Block> {
    let (mut blocks, mut excuse, mut open) = (Vec::new(), None, None::<String>);
    for event in Parser::new(markdown) {
        match event {
            Event::Html(html) => {
                let why = html.trim().strip_prefix("<!-- not run:").and_then(|h| h.strip_suffix("-->"));
                excuse = why.map(|w| w.trim().to_owned()).or(excuse);
            }
            Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(kind))) if &*kind == "sh" => {
                open = Some(String::new());
            }
            Event::Text(text) => open.iter_mut().for_each(|block| block.push_str(&text)),
            Event::End(TagEnd::CodeBlock) => {
                let excuse = excuse.take();
                blocks.extend(open.take().map(|text| Block { text, excuse }));
            }
            Event::Start(Tag::Paragraph | Tag::Heading { .. }) => excuse = None,
            _ => {}
        }
    }
    blocks
}

/// Targets of links in a text that lead to files or headings of this project.
pub fn links(markdown: &str) -> Vec<String> {
    let target = |event| match event {
        Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
            Some(dest_url.into_string())
        }
        _ => None,
    };
    let own = |target: &String| !target.contains("://") && !target.starts_with("mailto:");
    Parser::new_ext(markdown, Options::ENABLE_TABLES).filter_map(target).filter(own).collect()
}

/// Names under which the headings of a text can be linked to.
pub fn anchors(markdown: &str) -> Vec<String> {
    let (mut anchors, mut open) = (Vec::new(), None::<String>);
    for event in Parser::new(markdown) {
        match event {
            Event::Start(Tag::Heading { .. }) => open = Some(String::new()),
            Event::Text(text) | Event::Code(text) => open.iter_mut().for_each(|h| h.push_str(&text)),
            Event::End(TagEnd::Heading(_)) => anchors.extend(open.take().map(|heading| anchor(&heading))),
            _ => {}
        }
    }
    anchors
}

/// As forges make it of a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().replace(' ', "-");
    kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
}

/// A document, and what has to be there for its commands.
#[derive(Debug, Clone, Default)]
pub struct Document {
    /// Its path in the project.
    pub path: &'static str,
    /// Commands that come before its own.
    pub before: &'static str,
    /// What stands in it, and what stands for that on this machine: addresses, lengths.
    pub here: Vec<(&'static str, String)>,
}

impl Document {
    /// Runs it; what the shell said. Fails with that where a command does.
    pub fn run(&self, sandbox: &Sandbox) -> String {
        let script = self.script();
        let built = mcl().parent().unwrap().to_owned();
        std::fs::create_dir_all(sandbox.path("target")).unwrap();
        std::os::unix::fs::symlink(&built, sandbox.path("target/release")).unwrap();
        let mut path = vec![built];
        path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap()));
        let output = Command::new("bash")
            .args(["-c", &script])
            .current_dir(sandbox.path("."))
            .env("PATH", std::env::join_paths(path).unwrap())
            .env_remove("MCL_COORDINATOR")
            .env_remove("MCL_TLS")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let daemons = std::fs::read_to_string(sandbox.path("daemons.log")).unwrap_or_default();
        assert!(
            output.status.success(),
            "{}: {}\n{said}\n{}\ndaemons:\n{daemons}",
            self.path,
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        said
    }

    fn script(&self) -> String {
        let text = std::fs::read_to_string(project().join(self.path)).unwrap();
        let mut script = PROLOGUE.to_owned();
        let run: Vec<Block> = blocks(&text).into_iter().filter(|b| b.excuse.is_none()).collect();
        for line in self.before.lines().chain(run.iter().flat_map(|b| b.text.lines())) {
            let line =
                self.here.iter().fold(line.to_owned(), |line, (there, here)| line.replace(there, here));
            if let Some(target) = line.strip_prefix("make ") {
                let target = target.split_whitespace().next().unwrap();
                assert!(targets().iter().any(|t| t == target), "{}: make {target}", self.path);
            } else if line.starts_with("cargo build ") {
                assert!(makefile().contains(line.split('#').next().unwrap().trim()), "{}: {line}", self.path);
            } else if DAEMONS.iter().any(|d| line.starts_with(d)) {
                writeln!(script, "daemon {line}").unwrap();
            } else {
                writeln!(script, "{line}").unwrap();
            }
        }
        script
    }
}

/// What stays until it is stopped.
const DAEMONS: [&str; 3] = ["mcl coordinator ", "mcl checkpoint-server ", "mcl worker "];

/// Daemons end with the shell; one that listens has said so before the next command.
const PROLOGUE: &str = r#"set -euo pipefail
trap 'kill -KILL $(jobs -p) 2>/dev/null || true' EXIT
daemon() {
  local said="daemon-$RANDOM.log"
  "$@" >"$said" 2>>daemons.log </dev/null &
  [ "$2" = worker ] && return
  for _ in $(seq 600); do
    grep -q ^listening "$said" && return
    sleep 0.1
  done
  echo "$* does not listen" >&2
  return 1
}
"#;

fn makefile() -> String {
    std::fs::read_to_string(project().join("Makefile")).unwrap()
}

fn targets() -> Vec<String> {
    let makefile = makefile();
    let rules = makefile.lines().filter_map(|l| l.split_once(':')).map(|(name, _)| name.to_owned());
    rules.filter(|name| !name.starts_with(['.', '\t'])).collect()
}

/// Every document of the project, by its path in it.
pub fn all() -> Vec<PathBuf> {
    let examples = ["detectron2", "mmdetection", "torchvision"].map(|f| project().join("examples").join(f));
    let folders = ["", "docs", "docs/adr", "docs/results", "deploy"].map(|f| project().join(f));
    let files = folders
        .iter()
        .chain(&examples)
        .flat_map(|f| std::fs::read_dir(f).unwrap())
        .map(|entry| entry.unwrap().path());
    let texts = files.filter(|path| path.extension().is_some_and(|e| e == "md"));
    let mut all: Vec<PathBuf> = texts.map(|p| p.strip_prefix(project()).unwrap().to_owned()).collect();
    all.sort();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_found_with_their_excuses() {
        let text = "a\n\n```sh\nmcl x\n```\n\n<!-- not run: no cluster -->\n```sh\nkubectl y\n```\n\n```toml\nz\n```\n\n\
                    <!-- not run: gone -->\n\nAnother paragraph.\n\n```sh\nmcl w\n```\n";
        let block = |text: &str, excuse: Option<&str>| Block {
            text: text.to_owned(),
            excuse: excuse.map(str::to_owned),
        };
        assert_eq!(
            blocks(text),
            [block("mcl x\n", None), block("kubectl y\n", Some("no cluster")), block("mcl w\n", None)]
        );
    }

    #[test]
    fn headings_become_anchors() {
        assert_eq!(
            anchors("# `[data]`: where, and why\n\n## `mcl watch`\n"),
            ["data-where-and-why", "mcl-watch"]
        );
        assert_eq!(links("[a](b.md#c) [d](https://e.org) | [f](#g) |"), ["b.md#c", "#g"]);
    }
}
