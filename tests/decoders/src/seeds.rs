//! Good inputs of every decoder: small, and between them with every part that its format has.

use mcl_checkpoint_core::{Dtype, MANIFEST_FORMAT, Manifest, SliceEntry, slice_file, write_slice};
use mcl_data::dataset::TarIndex;
use mcl_proto::v1;
use mcl_types::{Digest, RunId, Step};
use prost::Message;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::path::{Path, PathBuf};

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The files of a folder of the project, in order of their names, up to a size.
fn files(folder: &str, largest: u64) -> Vec<Vec<u8>> {
    files_of(folder, largest, |_| true)
}

/// Those whose paths are wanted.
fn files_of(folder: &str, largest: u64, wanted: impl Fn(&Path) -> bool) -> Vec<Vec<u8>> {
    let listed = std::fs::read_dir(project().join(folder)).expect("a folder of the project");
    let mut paths: Vec<PathBuf> = listed.map(|e| e.expect("an entry").path()).collect();
    paths.sort();
    paths.retain(|p| wanted(p) && p.metadata().is_ok_and(|m| m.is_file() && m.len() <= largest));
    paths.iter().map(|p| std::fs::read(p).expect("a readable file")).collect()
}

/// As they lie in a checkpoint, and without the seal.
pub fn manifests() -> Vec<Vec<u8>> {
    let slice = |i| SliceEntry { file: slice_file(i, 2), size: 100, hash: Digest::of(&[7]) };
    let manifest = Manifest {
        format: MANIFEST_FORMAT.to_owned(),
        run_id: RunId::new("demo").expect("a name"),
        step: Step::new(10),
        created: 1_700_000_000,
        builder: "test".to_owned(),
        slices: vec![slice(0), slice(1)],
        state_digest: Digest::of(b"state"),
        tensors: 3,
        tensor_bytes: 180,
        meta: serde_json::json!({ "epoch": 1, "nested": [1.5e300, null, "\u{1f5bc}"] }),
    };
    let whole = manifest.render().expect("a manifest");
    let body = whole.split(",\n  \"manifest_hash\"").next().expect("a body").to_owned();
    vec![whole.into_bytes(), body.into_bytes()]
}

/// No tensor, scalars, empty tensors, several types.
pub fn slices() -> Vec<Vec<u8>> {
    let name = |n: &str| n.to_owned();
    let empty: Vec<(String, Dtype, Vec<usize>, &[u8])> = Vec::new();
    let some = vec![
        (name("a.weight"), Dtype::F32, vec![2, 1], [1_u8; 8].as_slice()),
        (name("b"), Dtype::I64, Vec::new(), [2_u8; 8].as_slice()),
        (name("c"), Dtype::BF16, vec![0, 5], [].as_slice()),
    ];
    [empty, some].iter().map(|tensors| write_slice(tensors).expect("a slice")).collect()
}

/// Two pictures with classes, one under a long name, with and without a side file.
pub fn tars() -> Vec<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    let long = format!("{}/three.png", "folder".repeat(30));
    let entries: [(&str, &[u8]); 6] = [
        ("one.jpg", b"picture one"),
        ("one.cls", b"17"),
        ("two.seg.png", b"picture two"),
        ("two.json", br#"{"label": 3}"#),
        (&long, b"picture three"),
        ("notes.txt", b"no sample"),
    ];
    for (name, bytes) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, bytes).expect("an entry");
    }
    let tar = builder.into_inner().expect("a tar");
    let index = TarIndex::scan(Path::new("shard.tar"), &tar).expect("an index");
    let side = serde_json::to_vec(&index).expect("a side file");
    [side, Vec::new()]
        .into_iter()
        .map(|side| {
            let length = u16::try_from(side.len()).expect("a short side file");
            [&length.to_le_bytes(), side.as_slice(), &tar].concat()
        })
        .collect()
}

/// Lists with and without headers, quotes, labels and what does not belong there.
pub fn lists() -> Vec<Vec<u8>> {
    let lists: [&[u8]; 5] = [
        b"a.jpg\n./b/c d.png\r\n\n/abs/e.gif\t12\nraw\xff.jpg",
        b"path,label\r\n\"a, b.jpg\",cat\r\nc.jpg,\r\n",
        b"id\tfile_name\tclass\n1\ta.jpg\t3\n2\tb.jpg\t4\n",
        b"\xef\xbb\xbfa.jpg,1\nb.jpg,2\n",
        b"a.jpg\n../b.jpg\ns3://bucket/c.jpg\na.jpg\n",
    ];
    lists.map(<[u8]>::to_vec).to_vec()
}

/// What `datasets` and pyarrow wrote.
pub fn parquets() -> Vec<Vec<u8>> {
    let is_parquet = |path: &Path| path.extension().is_some_and(|e| e == "parquet");
    files_of("crates/data/tests/foreign", 1 << 16, is_parquet)
}

/// The project's own job files, one that says everything, and addresses of stores.
pub fn jobs() -> Vec<Vec<u8>> {
    let mut jobs = files("configs", 1 << 16);
    let full = jobs
        .iter()
        .filter_map(|text| {
            mcl_config::Job::parse(std::str::from_utf8(text).ok()?, "job.toml").ok()?.to_toml().ok()
        })
        .map(String::into_bytes)
        .collect::<Vec<_>>();
    jobs.extend(full);
    jobs.extend(
        ["s3://bucket/prefix", "/srv/checkpoints", "az://container/a%20b"].map(|a| a.as_bytes().to_vec()),
    );
    jobs
}

fn events() -> Vec<v1::RankEvent> {
    use v1::rank_event::Event;
    let sample = v1::FedSample { index: 7, ..Default::default() };
    let lane = v1::LaneReport { samples: vec![sample], ..Default::default() };
    let step = v1::StepReport { step: 3, lanes: vec![lane.clone(), lane], ..Default::default() };
    [
        Event::Prepared(v1::Prepared {}),
        Event::Step(step),
        Event::Failed(v1::Failed { message: "no room".to_owned(), ..Default::default() }),
    ]
    .map(|event| v1::RankEvent { event: Some(event), ..Default::default() })
    .into()
}

fn commands() -> Vec<v1::RankCommand> {
    use v1::rank_command::Command;
    let token = Some(v1::FencingToken { term: 2, generation: 300 });
    let configure = v1::Configure { run_id: "demo".to_owned(), dataset_len: 1 << 40, ..Default::default() };
    [
        Command::Configure(configure),
        Command::Join(v1::Join { token, rank: 1, world_size: 4, committed: 12 }),
        Command::Committed(v1::Committed { step: 5 }),
    ]
    .map(|command| v1::RankCommand { command: Some(command) })
    .into()
}

/// Commands and events, each behind the number of its decoder; a name, a digest.
pub fn messages() -> Vec<Vec<u8>> {
    let numbered = |number: u8, bytes: Vec<u8>| [vec![number], bytes].concat();
    let mut all: Vec<Vec<u8>> = commands().iter().map(|m| numbered(2, m.encode_to_vec())).collect();
    all.extend(events().iter().map(|m| numbered(3, m.encode_to_vec())));
    all.extend(
        [b"demo-1".to_vec(), Digest::of(b"x").to_string().into_bytes()].map(|text| numbered(11, text)),
    );
    let token = v1::FencingToken { term: 1, generation: 2 };
    all.push(numbered(11, token.encode_to_vec()));
    all
}

/// A rank's life in frames.
pub fn frames() -> Vec<Vec<u8>> {
    let said: Vec<u8> = events().iter().flat_map(Message::encode_length_delimited_to_vec).collect();
    let heard: Vec<u8> = commands().iter().flat_map(Message::encode_length_delimited_to_vec).collect();
    vec![said, heard]
}

/// What torch and numpy wrote, and safetensors.
pub fn weights() -> Vec<Vec<u8>> {
    let mut all = files("crates/export/tests/data/torch", 1 << 16);
    let tensor = |name: &str| (name.to_owned(), Dtype::F32, vec![1], [0_u8; 4].as_slice());
    all.push(write_slice(&[tensor("backbone.conv1.weight"), tensor("neck.x")]).expect("a file"));
    all
}

/// A service's, with roles, a name and hosts; bare and as PEM.
pub fn certificates() -> Vec<Vec<u8>> {
    let pem = std::fs::read(project().join("tests/decoders/certificate.pem")).expect("a certificate");
    let bare = CertificateDer::from_pem_slice(&pem).expect("a certificate");
    vec![bare.to_vec(), pem]
}

/// Ill-formed and well-formed pictures of every format.
pub fn pictures() -> Vec<Vec<u8>> {
    files("crates/data/tests/odd-inputs", 1 << 14)
}
