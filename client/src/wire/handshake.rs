//! Who is there, from the device's side: greeting, proof, welcome, and the relay's own proof.
//!
//! The order matters. The relay's key is compared with the pinned one before anything is signed,
//! and the welcome is believed only after the relay has signed the same greeting.

use bytes::Bytes;
use sealwire_protocol::bounded::BoundedBytes;
use sealwire_protocol::close::CloseReason;
use sealwire_protocol::error::ErrorCode;
use sealwire_protocol::frame::{Authenticate, Greeting, Names, Welcome};
use sealwire_protocol::limits::PROTOCOL_VERSION;
use sealwire_protocol::{ClientFrame, DeviceKey, Digest, RelayFrame, codec, handshake, signing};

use super::{Options, Step, Wire, WireError};
use crate::address::RelayUrl;
use crate::identity::{Identity, random};

/// What the handshake has told the device.
#[derive(Clone, Debug)]
pub struct Session {
    /// The relay's key, proved.
    pub relay: DeviceKey,
    /// The relay's welcome.
    pub welcome: Welcome,
    /// What the relay says that it can do.
    pub capabilities: Names,
    /// Whether the resume token was enough.
    pub resumed: bool,
}

/// Connects to a relay and authenticates `device` there, by resume token if the options have one
/// that is still good, else by signature.
///
/// # Errors
/// A [`WireError`]; see its variants.
pub async fn connect(
    relay: &RelayUrl,
    device: &Identity,
    options: &Options,
) -> Result<(Wire, Session), WireError> {
    if let Some(token) = &options.resume_token {
        let mut wire = Wire::open(relay, options).await?;
        match wire.authenticate(device, options, Some(token)).await {
            Ok(session) => return Ok((wire, session)),
            Err(error) if is_refusal_of_proof(&error) => {}
            Err(error) => return Err(error),
        }
    }
    let mut wire = Wire::open(relay, options).await?;
    let session = wire.authenticate(device, options, None).await?;
    Ok((wire, session))
}

/// Whether the relay did not accept the proof or token: with a token, the signature may do.
fn is_refusal_of_proof(error: &WireError) -> bool {
    error.code() == Some(ErrorCode::AuthenticationFailed)
        || *error == WireError::Closed(Some(CloseReason::AuthenticationFailed))
}

impl Wire {
    /// Waits for the relay's greeting, and gives it with its bytes as they came: these are signed.
    ///
    /// # Errors
    /// [`WireError::NotARelay`] for anything else, [`WireError::Timeout`], or that the connection
    /// has ended.
    pub async fn greeting(&mut self, options: &Options) -> Result<(Greeting, Bytes), WireError> {
        let bytes = tokio::time::timeout(options.step_deadline, self.receive_bytes())
            .await
            .unwrap_or(Err(WireError::Timeout(Step::Greeting)))?;
        let envelope = codec::decode_relay(&bytes).map_err(|_| WireError::NotARelay)?;
        if let Ok(RelayFrame::Greeting(greeting)) = envelope.frame {
            Ok((greeting, bytes))
        } else if let Ok(RelayFrame::Error(error)) = envelope.frame {
            // A relay that cannot take anybody now says so in place of a greeting.
            Err(error.failure().into())
        } else {
            Err(WireError::NotARelay)
        }
    }

    /// Takes the greeting, proves the device by `token` or else by signature, and checks the
    /// relay's proof.
    ///
    /// # Errors
    /// A [`WireError`]; see its variants.
    pub async fn authenticate(
        &mut self,
        device: &Identity,
        options: &Options,
        token: Option<&[u8]>,
    ) -> Result<Session, WireError> {
        let (greeting, greeting_frame) = self.greeting(options).await?;
        check_greeting(&greeting, options)?;
        let token = token.and_then(|token| BoundedBytes::new(token.to_vec()));
        let resumed = token.is_some();
        let signature = (!resumed).then(|| device.prove(&greeting_frame));
        let challenge = Digest(random().map_err(|_| WireError::NoRandomness)?);
        let frame = ClientFrame::Authenticate(Authenticate {
            version: PROTOCOL_VERSION,
            device: device.key(),
            instance: options.instance,
            challenge,
            signature,
            token,
            heartbeat_s: u16::try_from(options.heartbeat.as_secs()).unwrap_or(u16::MAX),
            window: options.window,
            capabilities: Names::default(),
        });
        let request = self.queue(&frame);
        let welcome = tokio::time::timeout(options.step_deadline, self.welcome(request))
            .await
            .unwrap_or(Err(WireError::Timeout(Step::Welcome)))?;
        handshake::check_relay(
            greeting.relay,
            &greeting_frame,
            device.key(),
            challenge,
            &welcome.proof,
        )
        .map_err(|_| WireError::RelayProof)?;
        let capabilities = greeting.capabilities;
        Ok(Session { relay: greeting.relay, welcome, capabilities, resumed })
    }

    async fn welcome(&mut self, request: u32) -> Result<Welcome, WireError> {
        let envelope = self.receive().await?;
        let frame = envelope.frame.map_err(WireError::Frame)?;
        if let RelayFrame::Error(error) = frame {
            Err(error.failure().into())
        } else if let RelayFrame::Welcome(welcome) = frame
            && envelope.request == request
        {
            Ok(welcome)
        } else {
            Err(WireError::NotARelay)
        }
    }
}

fn check_greeting(greeting: &Greeting, options: &Options) -> Result<(), WireError> {
    if let Some(pinned) = options.relay
        && pinned != greeting.relay
    {
        return Err(WireError::RelayKeyChanged { pinned, presented: greeting.relay });
    }
    // Signatures by a key of mixed order verify here and not there.
    signing::admissible(greeting.relay).map_err(|_| WireError::RelayProof)?;
    let (lowest, highest) = greeting.versions;
    if !(lowest..=highest).contains(&PROTOCOL_VERSION) {
        return Err(WireError::Version { lowest, highest });
    }
    Ok(())
}
