//! `mcl eval knn` and `mcl eval linear`: what they answer, on what they can be tried, what they refuse.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use mcl_system_tests::{SIX_LANES_IN_F64, Sandbox, checkpoint_visible, committed, error_of};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::collections::BTreeSet;

/// A short run, and pictures to judge it by.
fn judged() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.ok(&["data", "generate", "objects", "--out", "others", "--count", "60", "--seed", "6"]);
    sandbox.ok(&["data", "generate", "scenes", "--out", "scenes", "--count", "12", "--seed", "7"]);
    sandbox.ok(&["run", "job.toml", "--run-dir", "run", "--devices", "cpu"]);
    sandbox
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

/// The answer of `mcl eval`, and what it said besides.
fn answer(sandbox: &Sandbox, arguments: &[&str]) -> (Value, String) {
    let output = sandbox.run(&[&["eval"], arguments, &["--json"]].concat());
    assert!(output.status.success(), "{}", error_of(&output));
    (serde_json::from_slice(&output.stdout).unwrap(), error_of(&output))
}

fn assert_shares(value: &Value, columns: &[&str]) {
    assert_eq!(keys(value), columns.iter().copied().collect());
    for column in columns {
        assert!((0.0..=1.0).contains(&value[column].as_f64().unwrap()), "{value}");
    }
}

/// One folder a class, from generated objects.
fn class_folders(sandbox: &Sandbox, from: &str, to: &str) {
    let text = std::fs::read(sandbox.path(from).join("annotations.json")).unwrap();
    let file: Value = serde_json::from_slice(&text).unwrap();
    for annotation in file["annotations"].as_array().unwrap() {
        let find = |list: &str, id: &Value| {
            file[list].as_array().unwrap().iter().find(|x| x["id"] == *id).unwrap().clone()
        };
        let image = find("images", &annotation["image_id"]);
        let class = find("categories", &annotation["category_id"]);
        let folder = sandbox.path(to).join(class["name"].as_str().unwrap());
        std::fs::create_dir_all(&folder).unwrap();
        let name = image["file_name"].as_str().unwrap();
        std::fs::copy(sandbox.path(from).join("images").join(name), folder.join(name)).unwrap();
    }
}

#[test]
fn neighbours_and_a_linear_probe_judge_the_same_features() {
    let sandbox = judged();
    let on = ["run", "--train", "objects", "--test", "others", "--scenes", "scenes"];
    let all = ["trained", "random", "pixels"];
    let (knn, _) = answer(&sandbox, &[&["knn"], &on[..]].concat());
    assert_eq!(keys(&knn), BTreeSet::from(["k", "objects", "scenes"]));
    assert_eq!(knn["k"], 20);
    assert_shares(&knn["objects"], &all);
    assert_shares(&knn["scenes"], &all);
    // Without --levels, and with: the levels are all that is added.
    let (levels, said) = answer(&sandbox, &[&["knn"], &on[..], &["--levels"]].concat());
    assert_eq!((&levels["objects"], &levels["scenes"]), (&knn["objects"], &knn["scenes"]));
    assert_eq!(keys(&levels["levels"]), BTreeSet::from(["c2", "c3", "c4", "c5", "p5"]));
    assert!(said.contains("P2, P3, P4 left out") && said.contains("--encoder online"), "{said}");

    // Scenes may be looked at enlarged, crops stay.
    let (large, _) = answer(&sandbox, &[&["knn"], &on[..], &["--short-side", "256"]].concat());
    assert_eq!(keys(&large), BTreeSet::from(["k", "objects", "scenes", "short_side"]));
    assert_eq!((&large["objects"], &large["short_side"]), (&knn["objects"], &Value::from(256)));
    assert_eq!(large["scenes"]["pixels"], knn["scenes"]["pixels"]);
    assert_ne!(large["scenes"], knn["scenes"]);
    let alone = ["eval", "knn", "run", "--train", "objects", "--test", "others", "--short-side", "256"];
    let said = error_of(&sandbox.run(&alone));
    assert!(said.contains("--scenes"), "{said}");

    let linear = [&["linear"], &on[..], &["--levels", "--encoder", "online"]].concat();
    let (probed, said) = answer(&sandbox, &linear);
    assert_eq!(keys(&probed), BTreeSet::from(["penalty", "objects", "scenes", "levels"]));
    assert_shares(&probed["objects"], &all);
    assert_shares(&probed["scenes"], &all);
    // The job has three levels, which end at P3.
    let online = BTreeSet::from(["c2", "c3", "c4", "c5", "p3", "p4", "p5"]);
    assert!(said.contains("P2 left out"), "{said}");
    assert_eq!((keys(&probed["levels"]), keys(&probed["penalty"]["levels"])), (online.clone(), online));
    for level in probed["levels"].as_object().unwrap().values() {
        assert_shares(level, &all[..2]);
    }
    assert_shares(&probed["penalty"]["scenes"], &all);
    assert_eq!(answer(&sandbox, &linear).0, probed, "it answers the same each time");
    let text = sandbox.ok(&[&["eval", "linear"], &on[..], &["--seed", "3"]].concat());
    assert!(text.starts_with("linear probe") && text.contains("scene boxes, C3-C5"), "{text}");
}

#[test]
fn labelled_pictures_without_boxes_are_objects_too() {
    let sandbox = judged();
    class_folders(&sandbox, "objects", "by-class");
    class_folders(&sandbox, "others", "other-classes");
    sandbox.ok(&["data", "pack", "other-classes", "--out", "shards"]);
    for verb in ["knn", "linear"] {
        let of = |test| answer(&sandbox, &[verb, "run", "--train", "by-class", "--test", test]).0;
        let folders = of("other-classes");
        assert_shares(&folders["objects"], &["trained", "random", "pixels"]);
        assert_eq!(folders["scenes"], Value::Null);
        assert_eq!(of("shards"), folders, "{verb}");
        // Boxes and whole pictures may be compared: their classes have the same names.
        assert_shares(&of("others")["objects"], &["trained", "random", "pixels"]);
        for (train, test, scenes, reasons) in [
            ("objects/images", "others", None, ["no label", "annotations.json"]),
            ("nowhere", "others", None, ["nowhere", "No such file"]),
            ("by-class", "others", Some("by-class"), ["annotations.json", "No such file"]),
        ] {
            let mut arguments = vec!["eval", verb, "run", "--train", train, "--test", test];
            arguments.extend(scenes.into_iter().flat_map(|scenes| ["--scenes", scenes]));
            let refused = sandbox.run(&arguments);
            let said = error_of(&refused);
            assert_eq!(refused.status.code(), Some(1), "{said}");
            assert!(reasons.iter().all(|reason| said.contains(reason)), "{said}");
            assert!(!said.contains("panicked"), "{said}");
        }
    }
}

/// Weights that went through three interruptions and two changes of size tell pictures apart as those of a steady run do: the
/// same accuracies to the last digit, and not by chance, since they are not those of other weights.
#[test]
fn a_run_interrupted_three_times_and_resized_twice_is_judged_as_a_steady_one() {
    let sandbox = Sandbox::new();
    sandbox.ok(&["data", "generate", "objects", "--out", "others", "--count", "200", "--seed", "6"]);
    sandbox.ok(&["data", "generate", "scenes", "--out", "scenes", "--count", "40", "--seed", "7"]);
    let job = [&SIX_LANES_IN_F64[..], &["checkpoint.every_steps=4"]].concat();
    sandbox.train("steady", 2, &job);

    let mut run = sandbox.start("eventful", 2, &job);
    run.until("the checkpoint of step 4", |dir| checkpoint_visible(dir, 4));
    run.kill_everything();
    let mut run = sandbox.start("eventful", 3, &job);
    run.until("the checkpoint of step 8", |dir| checkpoint_visible(dir, 8));
    run.signal(Signal::SIGINT);
    assert_eq!(run.end().status.code(), Some(130));
    let drained = committed(&sandbox.path("eventful"));
    let mut run = sandbox.start("eventful", 1, &job);
    run.until("a step more", |dir| committed(dir) > drained);
    run.kill_everything();
    let ended = sandbox.train("eventful", 1, &job);
    assert_eq!(ended["steps"], 20);
    let report = sandbox.exact_ledger("eventful");
    assert_eq!((&report["missing"], &report["twice"]), (&0.into(), &0.into()));
    assert_ne!(sandbox.digest("steady"), sandbox.digest("eventful"), "sums in another order, other bits");

    let (mut trained, mut random) = (Vec::new(), Vec::new());
    for verb in ["knn", "linear"] {
        for encoder in ["momentum", "online"] {
            let of = |run| {
                let on = ["--train", "objects", "--test", "others", "--scenes", "scenes"];
                answer(&sandbox, &[&[verb, run, "--encoder", encoder], &on[..]].concat()).0
            };
            let steady = of("steady");
            println!("{verb}, {encoder}: {steady}");
            assert_eq!(steady, of("eventful"), "{verb}, {encoder}");
            for on in ["objects", "scenes"] {
                trained.push(steady[on]["trained"].clone());
                random.push(steady[on]["random"].clone());
            }
        }
    }
    assert_ne!(trained, random, "any weights would have passed");
}
