//! Every objective on real processes: the same weights whatever happens, exports, and what is said where labels lack.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use mcl_system_tests::{SIX_LANES_IN_F64, Sandbox, checkpoint_visible, largest_error};
use std::fmt::Write as _;

const MOCO: [&str; 6] = [
    "method.objective=moco-v2",
    "method.levels=[1]",
    "method.level_weights=[1.0]",
    "method.queue=48",
    "method.temperature=0.2",
    "method.base_momentum=0.9",
];
const SUPERVISED: [&str; 2] = ["method.objective=mcl-supervised", "data.source=labelled.csv"];

/// A sandbox with a list of its pictures and their classes.
fn labelled() -> Sandbox {
    let sandbox = Sandbox::new();
    let file = sandbox.path("objects/annotations.json");
    let coco: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let mut list = String::from("path,label\n");
    for (image, object) in
        coco["images"].as_array().unwrap().iter().zip(coco["annotations"].as_array().unwrap())
    {
        assert_eq!(image["id"], object["image_id"]);
        let (name, class) = (image["file_name"].as_str().unwrap(), &object["category_id"]);
        writeln!(list, "objects/images/{name},{class}").unwrap();
    }
    std::fs::write(sandbox.path("labelled.csv"), list).unwrap();
    sandbox
}

#[test]
fn other_numbers_of_workers_agree_for_every_objective() {
    let sandbox = labelled();
    let shuffled = [&MOCO[..], &["method.norm=lane"]].concat();
    for (name, own) in [("moco", &MOCO[..]), ("shuffled", &shuffled), ("supervised", &SUPERVISED)] {
        let steps = ["train.steps=6", "checkpoint.every_steps=3", "checkpoint.keep=0"];
        let common = [&SIX_LANES_IN_F64[..], &steps, own].concat();
        let run = |workers: u32| format!("{name}-{workers}");
        for workers in [1, 4] {
            sandbox.train(&run(workers), workers, &common);
            sandbox.exact_ledger(&run(workers));
        }
        for step in [3, 6] {
            let error = largest_error(&sandbox.tensors(&run(4), step), &sandbox.tensors(&run(1), step));
            println!("{name}: 4 workers against 1: {error:.1e} after {step} steps");
            assert!(error <= 1e-9, "{name}: {error:e} after {step} steps");
        }
    }
    // 6 steps of 24 keys go three times round a queue of 48.
    let state = sandbox.tensors("moco-4", 6);
    assert_eq!(
        (state["queue"].shape.as_slice(), &state["queue_ptr"].bytes[..]),
        (&[48, 16][..], &[0; 8][..])
    );
}

#[test]
fn a_queue_and_classifiers_survive_the_death_of_everything() {
    let sandbox = labelled();
    for (name, own) in [("moco", &MOCO[..]), ("supervised", &SUPERVISED)] {
        let run = |what: &str| format!("{name}-{what}");
        let own = [own, &["batch.images_per_lane=8"]].concat();
        sandbox.train(&run("straight"), 2, &own);
        let mut killed = sandbox.start(&run("killed"), 2, &own);
        killed.until("the checkpoint of step 10", |dir| checkpoint_visible(dir, 10));
        killed.kill_everything();
        sandbox.train(&run("killed"), 2, &own);
        assert_eq!(sandbox.digest(&run("straight")), sandbox.digest(&run("killed")), "{name}");
    }
    // What is exported is the backbone alone where there is no pyramid.
    let export =
        |format, out| sandbox.run(&["checkpoint", "export", "moco-killed", "--format", format, "--out", out]);
    let exported = export("torchvision", "moco.pth");
    assert!(exported.status.success(), "{}", mcl_system_tests::error_of(&exported));
    let said = mcl_system_tests::error_of(&export("torchvision-fpn", "fpn.pth"));
    assert!(said.contains("no feature pyramid") && said.contains("--format torchvision,"), "{said}");
    assert!(
        sandbox
            .run(&["checkpoint", "export", "supervised-killed", "--out", "s.safetensors"])
            .status
            .success()
    );
}

#[test]
fn labels_that_lack_are_told_before_anything_starts() {
    let sandbox = labelled();
    let job = sandbox.path("job.toml");
    let job = job.to_str().unwrap();
    let set =
        |value| ["run", job, "--run-dir", "none", "--set", "method.objective=mcl-supervised", "--set", value];
    sandbox.fails(2, &["needs a label of every picture", ".jpg", ".cls"], &set("data.source=objects"));
    let list = std::fs::read_to_string(sandbox.path("labelled.csv")).unwrap();
    let same: String = list.lines().map(|line| line.split(',').next().unwrap().to_owned() + ",7\n").collect();
    std::fs::write(sandbox.path("same.csv"), same.replacen("path,7", "path,label", 1)).unwrap();
    sandbox.fails(2, &["at least two classes", "160"], &set("data.source=same.csv"));
    let huge = list.replacen(",3\n", ",4000000000\n", 1);
    std::fs::write(sandbox.path("huge.csv"), huge).unwrap();
    sandbox.fails(2, &["labels below 1048576", "has 4000000000"], &set("data.source=huge.csv"));
    let mut queue = vec!["run", job, "--run-dir", "none"];
    queue.extend(MOCO.iter().flat_map(|set| ["--set", set]));
    queue.extend(["--set", "method.queue=50"]);
    sandbox.fails(2, &["method.queue", "multiple of the 16 pictures", "such as 48"], &queue);
    assert!(!sandbox.path("none").exists());
}
