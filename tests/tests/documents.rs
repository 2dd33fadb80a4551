//! What documents tell people to type works, and where they lead is something.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use mcl_system_tests::Sandbox;
use mcl_system_tests::cluster::free_port;
use mcl_system_tests::documents::{Document, all, anchors, blocks, links, project};
use std::collections::BTreeSet;
use std::path::Path;

/// Documents whose commands are run, each by a test of its own.
const RUN: [&str; 8] = [
    "README.md",
    "docs/cluster.md",
    "docs/data.md",
    "docs/fine-tuning.md",
    "docs/security.md",
    "docs/terminal.md",
    "docs/troubleshooting.md",
    "docs/tutorial.md",
];

/// Two services, on free ports of this machine.
fn addresses() -> Vec<(&'static str, String)> {
    let [coordinator, checkpoint] = [(); 2].map(|()| free_port([127, 0, 0, 1].into()).to_string());
    let here = [
        ("10.0.0.1:7070", coordinator),
        ("10.0.0.1:7071", checkpoint),
        ("10.0.0.1", "127.0.0.1".to_owned()),
        ("10.0.0.2", "127.0.0.1".to_owned()),
        ("--interface eth0", "--interface lo".to_owned()),
    ];
    here.into()
}

#[test]
fn the_tutorial_works_as_it_stands() {
    // Nothing is there but the programs.
    let sandbox = Sandbox::new();
    std::fs::remove_dir_all(sandbox.path("objects")).unwrap();
    std::fs::remove_file(sandbox.path("job.toml")).unwrap();
    let said = Document { path: "docs/tutorial.md", ..Document::default() }.run(&sandbox);
    assert!(said.contains("resnet18"), "{said}");
    sandbox.exact_ledger("runs/mine");
    assert_eq!(sandbox.metrics("runs/mine").len(), 60);
}

#[test]
fn the_readme_works() {
    let sandbox = Sandbox::new();
    let job = std::fs::read_to_string(sandbox.path("job.toml")).unwrap();
    std::fs::create_dir(sandbox.path("configs")).unwrap();
    let demo = job.replace("source = \"objects\"", "source = \"../objects\"");
    assert_ne!(demo, job);
    std::fs::write(sandbox.path("configs/demo.toml"), demo).unwrap();
    let here = vec![
        ("step-0000000700", "step-0000000020".to_owned()),
        ("--agents 2000 --ranks-per-agent 8", "--agents 20 --seconds 1".to_owned()),
        ("--folder /data", "--folder . --snapshots 2 --uploads 1".to_owned()),
        ("--depth 50", "--depth 18 --image-size 64 --images 4".to_owned()),
    ];
    let before = "mcl data generate objects --out other-objects --count 40 --seed 6
mcl data generate scenes --out pictures --count 12 --seed 7
cp \"$(find pictures/images -type f | sort | head -1)\" one.jpg";
    Document { path: "README.md", before, here }.run(&sandbox);
}

#[test]
fn the_cluster_guide_works() {
    let sandbox = Sandbox::new();
    let said = Document { path: "docs/cluster.md", here: addresses(), ..Document::default() }.run(&sandbox);
    assert!(said.contains("first"), "{said}");
}

#[test]
fn pictures_are_packed_as_told() {
    let before = "mcl data generate scenes --out pictures --count 12 --seed 7";
    let said = Document { path: "docs/data.md", before, ..Document::default() }.run(&Sandbox::new());
    assert!(said.contains("12 pictures in 1 shards"), "{said}");
}

#[test]
fn certificates_are_used_as_told() {
    let here = addresses();
    let said = Document { path: "docs/security.md", here, ..Document::default() }.run(&Sandbox::new());
    assert!(said.contains("job"), "{said}");
}

#[test]
fn what_is_told_of_terminals_works() {
    Document { path: "docs/terminal.md", ..Document::default() }.run(&Sandbox::new());
}

#[test]
fn what_helps_in_trouble_works() {
    let sandbox = Sandbox::new();
    let mut here = addresses();
    let url = format!("http://{}", here[0].1);
    here.push(("URL", url));
    let before = "mcl data generate scenes --out pictures --count 12 --seed 7
mcl run job.toml --run-dir runs/first --devices cpu --set train.steps=4
mcl checkpoint-server --root store --listen 10.0.0.1:7071
mcl coordinator --runs runs/many --checkpoint http://10.0.0.1:7071 --listen 10.0.0.1:7070
export MCL_COORDINATOR=URL";
    Document { path: "docs/troubleshooting.md", before, here }.run(&sandbox);
}

#[test]
fn exports_for_every_tool_are_made_as_told() {
    let sandbox = Sandbox::new();
    let before = "mcl run job.toml --run-dir runs/first --devices cpu --set train.steps=3 \
--set method.levels='[1, 2, 4, 8]' --set method.level_weights='[0.5, 0.25, 0.125, 0.125]' --set model.image_size=64";
    Document { path: "docs/fine-tuning.md", before, here: Vec::new() }.run(&sandbox);
    for file in
        ["backbone.pth", "fpn.pth", "timm.pth", "detectron2.pkl", "mmdet.pth", "detectron2.yaml", "mmdet.py"]
    {
        assert!(sandbox.path(file).is_file(), "{file}");
    }
}

#[test]
fn no_command_is_passed_over_without_a_reason() {
    for path in all() {
        let text = std::fs::read_to_string(project().join(&path)).unwrap();
        let run = RUN.iter().any(|r| Path::new(r) == path);
        for block in blocks(&text) {
            let reason = block.excuse.as_deref().is_some_and(|why| why.len() > 10);
            assert!(run || reason, "{}: nobody runs\n{}", path.display(), block.text);
        }
    }
}

#[test]
fn links_lead_somewhere() {
    for path in all() {
        let text = std::fs::read_to_string(project().join(&path)).unwrap();
        let folder = project().join(&path).parent().unwrap().to_owned();
        for link in links(&text) {
            let (file, heading) = link.split_once('#').map_or((link.as_str(), None), |(f, h)| (f, Some(h)));
            let target = if file.is_empty() { project().join(&path) } else { folder.join(file) };
            assert!(target.exists(), "{}: {link} leads nowhere", path.display());
            if let Some(heading) = heading {
                let found: BTreeSet<String> =
                    anchors(&std::fs::read_to_string(&target).unwrap()).into_iter().collect();
                assert!(
                    found.contains(heading),
                    "{}: {link}: no such heading among {found:?}",
                    path.display()
                );
            }
        }
    }
}
