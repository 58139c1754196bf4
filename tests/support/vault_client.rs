//! A device of a vault that holds no session: it signs its own entries and speaks HTTP.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sealwire_client::entry::{Outline, Signed};
use sealwire_client::identity::Identity;
use sealwire_client::numbering::Mark;
use sealwire_protocol::digest::{native_log_id, sha256};
use sealwire_protocol::{Control, Digest, Head, Kind, LogId, LogType};
use serde_json::{Value, json};

use super::phone::{Answer, Phone, Proof};
use super::world::World;

/// A device that speaks HTTP.
pub(crate) struct Client {
    pub(crate) phone: Phone,
    pub(crate) identity: Identity,
    /// Its newest entry.
    pub(crate) own: Mark,
    pub(crate) log: LogId,
}

impl Client {
    pub(crate) fn new(world: &World, seed: u8, log: LogId) -> Self {
        let phone = Phone::new(world.address(), seed);
        let identity = Identity::from_seed(&phone.signing.to_bytes());
        Self { phone, identity, own: Mark::NONE, log }
    }

    /// Founds a vault.
    pub(crate) async fn found(world: &World) -> Self {
        let mut client = Self::new(world, 1, LogId::ZERO);
        let control = Control::Found { log_type: LogType::Vault, random: [3; 32], join_key: None };
        let signed = Outline::first().sign(&client.identity, &control.encode()).expect("short");
        client.log = native_log_id(&signed.entry.header);
        client.own = Mark { count: 1, digest: signed.digest };
        let answer = client.phone.post("/vaults", pushed(&signed)).await.ok();
        assert_eq!(answer["vault_id"], client.log.to_uuid_text());
        assert_eq!(answer["ack"], 1);
        client
    }

    /// Another device, enrolled by this one.
    pub(crate) async fn enrol(&mut self, world: &World, seed: u8) -> Self {
        let other = Self::new(world, seed, self.log);
        let device = other.identity.key();
        let signature = other.identity.consent(self.log, self.identity.key());
        let control = Control::Enrol { device, signature };
        let signed = self.sign(Kind::Control, &control.encode());
        self.push(&[signed]).await.ok();
        other
    }

    pub(crate) fn sign(&mut self, kind: Kind, body: &[u8]) -> Signed {
        let outline = Outline {
            log: self.log,
            count: self.own.count + 1,
            prev: self.own.digest,
            kind,
            recipients: Vec::new(),
            seen: Head::NONE,
        };
        let signed = outline.sign(&self.identity, body).expect("short");
        self.own = Mark { count: self.own.count + 1, digest: signed.digest };
        signed
    }

    pub(crate) fn path(&self, rest: &str) -> String {
        format!("/vaults/{}{rest}", self.log.to_uuid_text())
    }

    pub(crate) async fn push(&self, entries: &[Signed]) -> Answer {
        let changesets: Vec<Value> = entries.iter().map(pushed).collect();
        self.phone.post(&self.path("/changesets"), json!({ "changesets": changesets })).await
    }

    pub(crate) async fn pull(&self, after: u64) -> Value {
        self.phone.get(&self.path(&format!("/changesets?after={after}"))).await.ok()
    }

    pub(crate) async fn vault_token(&self) -> String {
        let answer = self.phone.post(&self.path("/token"), json!({})).await.ok();
        answer["token"].as_str().expect("a token").to_owned()
    }

    /// A pull with a token and nothing else.
    pub(crate) async fn pull_with(&self, token: &str) -> Answer {
        let proof = Proof::Vault(token.to_owned());
        let path = self.path("/changesets");
        self.phone.send("GET", &path, &proof, None).await.expect("an answer")
    }

    /// Uploads a snapshot of everything and makes it real. Gives its name, and its head.
    pub(crate) async fn snapshot(&mut self, whole: &[u8]) -> (Digest, Head) {
        let digest = sha256(whole);
        let name = hex::encode(digest.0);
        let path = self.path(&format!("/snapshots/{name}?size={}", whole.len()));
        let proof = self.phone.proof().await.expect("a token");
        let put = self.phone.send("PUT", &path, &proof, Some(whole.to_vec())).await;
        put.expect("an answer").ok();
        let at = self.pull(0).await["head"].clone();
        let mut head = Head {
            incarnation: at["incarnation"]
                .as_str()
                .and_then(|it| it.parse().ok())
                .expect("a number"),
            seq: at["sequence"].as_u64().expect("a number"),
            ..Head::NONE
        };
        hex::decode_to_slice(at["chain"].as_str().expect("hex"), &mut head.chain.0).expect("hex");
        let control = Control::Snapshot { head, digest, size: whole.len() as u64, chunks: 1 };
        let outline = Outline {
            log: self.log,
            count: self.own.count + 1,
            prev: self.own.digest,
            kind: Kind::Control,
            recipients: Vec::new(),
            seen: head,
        };
        let signed = outline.sign(&self.identity, &control.encode()).expect("short");
        self.own = Mark { count: self.own.count + 1, digest: signed.digest };
        self.push(&[signed]).await.ok();
        (digest, head)
    }
}

/// An entry as it is pushed.
pub(crate) fn pushed(signed: &Signed) -> Value {
    json!({
        "header": STANDARD.encode(signed.entry.header.0),
        "signature": STANDARD.encode(signed.entry.signature.expect("signed").0),
        "payload_encrypted": STANDARD.encode(&signed.entry.body),
    })
}
