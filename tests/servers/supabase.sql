-- The part of a Supabase project that the service reads, with the roles and policies Supabase gives it.

create role anon nologin noinherit;
create role authenticated nologin noinherit;
create role service_role nologin noinherit bypassrls;
create role authenticator login noinherit;
grant anon, authenticated, service_role to authenticator;

create schema auth;
create function auth.uid() returns uuid language sql stable as $$
  select nullif(current_setting('request.jwt.claims', true)::json ->> 'sub', '')::uuid
$$;
grant usage on schema auth, public to anon, authenticated, service_role;

create table profiles (
  id uuid primary key,
  role text not null default 'user'
);

create table buildings (
  id text primary key,
  user_id uuid not null
);
create index on buildings (user_id);

create table org_appliances (
  id uuid primary key default gen_random_uuid(),
  appliance_id text not null unique
);

create table building_appliances (
  building_id text not null references buildings (id) on delete cascade,
  org_appliance_id uuid not null references org_appliances (id) on delete cascade,
  primary key (building_id, org_appliance_id)
);

alter table profiles enable row level security;
alter table buildings enable row level security;
alter table org_appliances enable row level security;
alter table building_appliances enable row level security;

create policy own_profile on profiles for select to authenticated
  using (id = auth.uid());
create policy own_buildings on buildings for select to authenticated
  using (user_id = auth.uid());
create policy appliances_of_own_buildings on building_appliances for select to authenticated
  using (exists (select from buildings b where b.id = building_id and b.user_id = auth.uid()));
create policy appliances_in_own_buildings on org_appliances for select to authenticated
  using (exists (
    select from building_appliances a join buildings b on b.id = a.building_id
    where a.org_appliance_id = org_appliances.id and b.user_id = auth.uid()
  ));

-- As on Supabase, every role may ask; the policies decide what it sees, and anon has none.
grant select on all tables in schema public to anon, authenticated, service_role;
