//! Exports against the lists of names that other tools expect, and the bytes that they are made of.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use mcl_checkpoint_core::SliceView;
use mcl_export::{Encoder, Format, Tensors, import};
use mcl_types::Digest;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;
use support::{Shapes, exported, list, state};

/// Names, types and shapes in a `.pth` or `.pkl`, read from the pickle's instructions by this test's own few lines.
mod disassembled {
    use std::collections::BTreeSet;

    /// What a pickle consists of.
    #[derive(Debug, Default)]
    pub struct Pickle {
        pub protocol: u8,
        pub globals: BTreeSet<String>,
        pub opcodes: BTreeSet<u8>,
        pub texts: Vec<String>,
        /// How often each function is called is counted by its name.
        pub persistent: usize,
    }

    pub fn read(bytes: &[u8]) -> Pickle {
        let mut pickle = Pickle { protocol: bytes[1], ..Pickle::default() };
        assert_eq!(bytes[0], 0x80);
        let mut at = 2;
        let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        loop {
            let op = bytes[at];
            pickle.opcodes.insert(op);
            at += 1;
            at += match op {
                b'.' => break,
                b'c' => {
                    let line = |from: usize| from + bytes[from..].iter().position(|b| *b == b'\n').unwrap();
                    let middle = line(at);
                    let end = line(middle + 1);
                    let text = |a: usize, b: usize| std::str::from_utf8(&bytes[a..b]).unwrap().to_owned();
                    pickle.globals.insert(format!("{}.{}", text(at, middle), text(middle + 1, end)));
                    end + 1 - at
                }
                b'X' => {
                    let length = number(at);
                    pickle.texts.push(String::from_utf8(bytes[at + 4..at + 4 + length].to_vec()).unwrap());
                    4 + length
                }
                b'B' => 4 + number(at),
                b'C' => 1 + bytes[at] as usize,
                b'K' => 1,
                b'M' => 2,
                b'J' => 4,
                0x8a => 1 + bytes[at] as usize,
                b'Q' => {
                    pickle.persistent += 1;
                    0
                }
                b'(' | b')' | b't' | b'u' | b'}' | b'R' | b'b' | b'N' | 0x88 | 0x89 => 0,
                other => panic!("instruction {other:#x} at {at}"),
            };
        }
        assert_eq!(at, bytes.len(), "nothing follows the end");
        pickle
    }
}

fn shapes(tensors: &Tensors) -> Shapes {
    tensors.iter().map(|(n, t)| (n.clone(), t.shape.clone())).collect()
}

/// Entries of a zip container, by name without its folder.
fn unzipped(file: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut archive = zip::ZipArchive::new(Cursor::new(file)).unwrap();
    let mut entries = BTreeMap::new();
    for at in 0..archive.len() {
        let mut entry = archive.by_index(at).unwrap();
        let name = entry.name().unwrap().into_owned();
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
        entries.insert(name.strip_prefix("archive/").unwrap().to_owned(), bytes);
    }
    entries
}

/// Names of tensors in a pickle, which are the only texts with a dot in them.
fn names(pickle: &disassembled::Pickle) -> BTreeSet<String> {
    pickle
        .texts
        .iter()
        .filter(|t| {
            t.ends_with("weight") || t.ends_with("bias") || t.contains("running") || t.ends_with("tracked")
        })
        .cloned()
        .collect()
}

#[test]
fn torch_files_have_the_keys_of_the_tool_and_only_harmless_functions() {
    let state = state();
    let allowed = [
        "collections.OrderedDict",
        "torch._utils._rebuild_tensor_v2",
        "torch.FloatStorage",
        "torch.LongStorage",
    ]
    .map(str::to_owned);
    for (format, file) in [
        (Format::Torchvision, "torchvision_resnet50.txt"),
        (Format::TorchvisionFpn, "torchvision_resnet50_fpn.txt"),
        (Format::Timm, "timm_resnet50.txt"),
        (Format::Mmdet, "mmdet_r50_fpn.txt"),
    ] {
        let expected = list(file);
        let files = exported(&state, format, Encoder::Momentum);
        let entries = unzipped(&files[0].bytes);
        let pickle = disassembled::read(&entries["data.pkl"]);
        assert_eq!(pickle.protocol, 2, "{file}");
        assert!(pickle.globals.is_subset(&allowed.clone().into()), "{:?}", pickle.globals);
        assert_eq!(names(&pickle), expected.keys().cloned().collect(), "{file}");
        assert_eq!(pickle.persistent, expected.len());
        assert_eq!(entries["version"], b"3\n");
        assert_eq!(entries["byteorder"], b"little");
        // Storages are numbered in name order, and as long as the shapes say.
        for (number, (name, shape)) in expected.iter().enumerate() {
            let element = if name.ends_with("tracked") { 8 } else { 4 };
            let length = shape.iter().product::<usize>() * element;
            assert_eq!(entries[&format!("data/{number}")].len(), length, "{file}: {name}");
        }
        assert_eq!(entries.len(), expected.len() + 3);
        assert_eq!(pickle.texts.iter().any(|t| t == "state_dict"), format == Format::Mmdet);
    }
}

#[test]
fn detectron2_gets_exactly_what_its_model_has() {
    let files = exported(&state(), Format::Detectron2, Encoder::Online);
    let pickle = disassembled::read(&files[0].bytes);
    assert_eq!(pickle.protocol, 3);
    let functions = ["numpy.core.multiarray._reconstruct", "numpy.dtype", "numpy.ndarray"].map(str::to_owned);
    assert_eq!(pickle.globals, functions.into());
    for key in ["model", "__author__", "matching_heuristics"] {
        assert!(pickle.texts.iter().any(|t| t == key), "{key}");
    }
    // Names match by their endings: each of the model's is met by one of ours, and each of ours meets one.
    let ours = names(&pickle);
    let theirs = list("detectron2_r50_fpn.txt");
    let met: BTreeSet<String> = theirs
        .keys()
        .map(|full| {
            let met: Vec<_> = ours.iter().filter(|own| full.ends_with(&format!(".{own}"))).collect();
            assert_eq!(met.len(), 1, "{full}: {met:?}");
            met[0].clone()
        })
        .collect();
    assert_eq!(met, ours);
    assert_eq!(ours.len(), 390);
    assert_eq!(files[1].name, "mcl.yaml");
}

/// What each format takes of the state comes back bit for bit, under the names that a run begins with.
#[test]
fn what_was_exported_comes_back_bit_for_bit() {
    let state = state();
    for encoder in [Encoder::Momentum, Encoder::Online] {
        for format in Format::ALL {
            let files = exported(&state, format, encoder);
            let back = import(&files[0].bytes).unwrap();
            let part = |own: &str| match format {
                Format::Safetensors => true,
                Format::Torchvision | Format::Timm => own.starts_with("0."),
                Format::TorchvisionFpn => own.starts_with("0."),
                Format::Detectron2 | Format::Mmdet => !own.starts_with("2.mlp."),
            };
            let expected: Tensors = state
                .iter()
                .filter_map(|(name, t)| Some((name.strip_prefix(encoder.prefix())?, t)))
                .filter(|(own, _)| part(own))
                .map(|(own, t)| {
                    let (number, rest) = own.split_once('.').unwrap();
                    let folder = ["backbone", "neck", "projector"][number.parse::<usize>().unwrap()];
                    let mut t = t.clone();
                    // Frozen norms keep no count: it begins anew.
                    if format == Format::TorchvisionFpn && own.ends_with("tracked") {
                        t.bytes = vec![0; 8];
                    }
                    (format!("{folder}.{rest}"), t)
                })
                .collect();
            assert_eq!(shapes(&back.tensors), shapes(&expected), "{format:?}");
            assert!(back.tensors == expected, "{format:?} {encoder:?}: other bits");
            assert_eq!(back.widened, 0);
            assert_eq!(back.counters, if format == Format::TorchvisionFpn { 53 } else { 0 });
            let left: usize = back.left_out.iter().map(|l| l.names.len()).sum();
            assert_eq!(left, if format == Format::TorchvisionFpn { 16 } else { 0 }, "{:?}", back.left_out);
        }
    }
}

#[test]
fn the_pyramid_without_norms_has_the_shapes_that_torchvision_expects() {
    let provenance = support::provenance();
    let request = mcl_export::ExportRequest {
        format: Format::TorchvisionFpn,
        encoder: Encoder::Momentum,
        file_name: "mcl.safetensors",
        provenance: &provenance,
    };
    let files = mcl_export::export(&request, &state()).unwrap().files;
    let view = SliceView::parse(&files[0].bytes).unwrap();
    let found: Shapes = view.tensors().map(|(n, t)| (n.to_owned(), t.shape.clone())).collect();
    assert_eq!(found, list("torchvision_resnet50_fpn.txt"));
}

#[test]
fn the_same_state_gives_the_same_files_and_another_encoder_others() {
    let state = state();
    for format in Format::ALL {
        let momentum = exported(&state, format, Encoder::Momentum);
        assert_eq!(momentum, exported(&state, format, Encoder::Momentum), "{format:?}");
        assert_ne!(momentum[0].bytes, exported(&state, format, Encoder::Online)[0].bytes, "{format:?}");
    }
}

#[test]
fn cards_tell_file_run_and_settings() {
    for format in Format::ALL {
        let files = exported(&state(), format, format.default_encoder());
        let weights = &files[0];
        let find =
            |ending: &str| files.iter().find(|f| f.name == format!("{}{ending}", weights.name)).unwrap();
        let card: serde_json::Value = serde_json::from_slice(&find(".card.json").bytes).unwrap();
        assert_eq!(card["file"]["blake3"], Digest::of(&weights.bytes).to_string());
        assert_eq!(card["file"]["format"], format.name());
        assert_eq!(
            card["encoder"],
            match format {
                Format::TorchvisionFpn | Format::Detectron2 | Format::Mmdet => "online",
                Format::Safetensors | Format::Torchvision | Format::Timm => "momentum",
            }
        );
        assert_eq!(card["run"]["steps"], 500);
        assert_eq!(card["run"]["last_loss"], 1.25);
        assert_eq!(card["run"]["data_digest"], "cd".repeat(32));
        assert_eq!(card["run"]["state_digest"], "ab".repeat(32));
        assert_eq!(card["config"]["model"]["depth"], 50);
        assert_eq!(card["run"]["from"], "resnet50.safetensors");
        assert_eq!(card["unseen"], serde_json::json!({"norms": [], "levels": []}));
        assert_eq!(card["architecture"]["depth"], 50);
        let text = String::from_utf8(find(".card.md").bytes.clone()).unwrap();
        for part in ["| steps | 500 |", "depth = 50", &Digest::of(&weights.bytes).to_string()] {
            assert!(text.contains(part), "{format:?}: {part}");
        }
        // The state is a sixteenth as wide as what these tools have; a width is a setting in the others.
        let fixed = matches!(format, Format::Torchvision | Format::TorchvisionFpn | Format::Timm);
        assert_eq!(card["obstacle"].is_string(), fixed, "{format:?}");
        assert_eq!(text.contains("```python"), !fixed, "{format:?}");
        match card["load"].as_str() {
            Some(load) => assert!(load.contains(&weights.name) || format == Format::Mmdet),
            None => assert!(fixed && text.contains("this network 4"), "{text}"),
        }
    }
}

fn exported_with(
    state: &Tensors,
    format: Format,
    encoder: Encoder,
    file_name: &str,
) -> Result<mcl_export::Exported, mcl_export::ExportError> {
    let provenance = support::provenance();
    let request = mcl_export::ExportRequest { format, encoder, file_name, provenance: &provenance };
    mcl_export::export(&request, state)
}

/// The state of a job with `compute = "exact"`: the momentum encoder never ran P2 to P4.
fn exact() -> Tensors {
    let mut state = state();
    for level in 0..3 {
        for part in ["lateral_convs", "fpn_convs"] {
            let counter = format!("encoder_k.1.{part}.{level}.bn.num_batches_tracked");
            state.get_mut(&counter).unwrap().bytes = vec![0; 8];
        }
    }
    state
}

#[test]
fn norms_that_saw_no_data_are_never_folded_and_always_said() {
    let state = exact();
    let folded = |state, encoder| exported_with(state, Format::TorchvisionFpn, encoder, "mcl.pth");
    let refused = folded(&state, Encoder::Momentum).unwrap_err().to_string();
    assert!(refused.contains("`encoder_k.1.fpn_convs.0.bn` never saw data"), "{refused}");
    assert!(refused.contains("--encoder online"), "{refused}");
    let online = folded(&state, Encoder::Online).unwrap();
    assert_eq!(online.notices.len(), 1, "{:?}", online.notices);
    // Formats that fold nothing are written, and say it thrice: in both cards and to whoever exports.
    for (format, name) in [
        (Format::Detectron2, "mcl.pkl"),
        (Format::Mmdet, "mcl.pth"),
        (Format::Safetensors, "mcl.safetensors"),
    ] {
        let exported = exported_with(&state, format, Encoder::Momentum, name).unwrap();
        assert!(exported.notices[0].starts_with("6 norms never saw data"), "{:?}", exported.notices);
        let card = |ending: &str| exported.files.iter().find(|f| f.name.ends_with(ending)).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&card(".card.json").bytes).unwrap();
        assert_eq!(json["unseen"]["norms"].as_array().unwrap().len(), 6, "{format:?}");
        let text = String::from_utf8(card(".card.md").bytes.clone()).unwrap();
        assert!(text.contains(&exported.notices[0]), "{format:?}");
        assert_eq!(exported_with(&state, format, Encoder::Online, name).unwrap().notices, [""; 0]);
    }
    assert!(exported_with(&state, Format::Timm, Encoder::Momentum, "mcl.pth").unwrap().notices.len() == 1);
    // A level that no loss reached has no statistics in either encoder.
    let mut three = state.clone();
    three.retain(|name, _| !name.starts_with("head.predictor.3."));
    for part in ["lateral_convs", "fpn_convs"] {
        let counter = format!("encoder_q.1.{part}.0.bn.num_batches_tracked");
        three.get_mut(&counter).unwrap().bytes = vec![0; 8];
    }
    let refused = folded(&three, Encoder::Online).unwrap_err().to_string();
    assert!(refused.contains("level was not trained") && !refused.contains("--encoder"), "{refused}");
    let notices = exported_with(&three, Format::Mmdet, Encoder::Online, "mcl.pth").unwrap().notices;
    assert!(notices[1].contains("level P2"), "{notices:?}");
}

/// A name may hold what ends a text, a line, or code.
#[test]
fn names_of_files_are_texts_and_nothing_else() {
    let state = state();
    let odd = "it's \"one\" #1: `a`\\\n|";
    for (format, ending) in [(Format::Mmdet, "pth"), (Format::Detectron2, "pkl")] {
        let name = format!("{odd}.{ending}");
        let files = exported_with(&state, format, Encoder::Online, &name).unwrap().files;
        let config = String::from_utf8(files[1].bytes.clone()).unwrap();
        let text = r##""it's \"one\" #1: `a`\\\n|"##;
        let line = config.lines().find(|l| l.contains(text)).unwrap_or_else(|| panic!("{config}"));
        assert!(
            line.ends_with(&format!("{text}.{ending}\"")) || line.ends_with(&format!("{text}.{ending}\"),"))
        );
        let card = String::from_utf8(files[3].bytes.clone()).unwrap();
        assert!(card.lines().any(|l| l.starts_with("| file | `it's") && l.ends_with("tensors |")), "{card}");
        assert!(card.contains(&format!("{text}.")), "{card}");
    }
}

#[test]
fn a_state_without_the_encoder_is_an_error_that_names_it() {
    let mut state = state();
    state.retain(|name, _| !name.starts_with("encoder_k."));
    let provenance = support::provenance();
    let request = mcl_export::ExportRequest {
        format: Format::Timm,
        encoder: Encoder::Momentum,
        file_name: "mcl.pth",
        provenance: &provenance,
    };
    let error = mcl_export::export(&request, &state).unwrap_err().to_string();
    assert!(error.contains("encoder_k."), "{error}");
}
