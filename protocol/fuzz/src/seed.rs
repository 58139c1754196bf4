//! Writes the test vectors as corpus files, so that fuzzing begins with frames and not with noise.

use std::error::Error;
use std::path::Path;

use serde_json::Value;

/// Target, vector file, and the name of the bytes in a case.
const SEEDS: [(&str, &str, &str); 7] = [
    ("decode_client", "client_frames.json", "bytes"),
    ("decode_client", "frame_forms.json", "bytes"),
    ("decode_relay", "relay_frames.json", "bytes"),
    ("control", "controls.json", "body"),
    ("key_body", "key_bodies.json", "body"),
    ("header", "headers.json", "header"),
    ("token", "tokens.json", "token"),
];

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (target, file, name) in SEEDS {
        let corpus = root.join("corpus").join(target);
        std::fs::create_dir_all(&corpus)?;
        let vectors = std::fs::read(root.join("../vectors").join(file))?;
        let vectors: Value = serde_json::from_slice(&vectors)?;
        for (n, case) in vectors["cases"].as_array().into_iter().flatten().enumerate() {
            let bytes = hex::decode(case[name].as_str().unwrap_or_default())?;
            std::fs::write(corpus.join(format!("{file}-{n}")), bytes)?;
        }
    }
    // More single seqs than there are ranges, in the form that the target reads.
    let singles: Vec<u8> =
        (1..=300_u16).flat_map(|n| [(2 * n).to_be_bytes().as_slice(), &[1]].concat()).collect();
    std::fs::create_dir_all(root.join("corpus/acks"))?;
    std::fs::write(root.join("corpus/acks/more-than-fit"), singles)?;
    Ok(())
}
