-- Finds the device that had a push token before.
create index devices_push_token on devices (push_token) where push_token is not null;
