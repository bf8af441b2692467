export type Role = 'viewer' | 'editor' | 'owner';
export type ServerState = 'stopped' | 'starting' | 'restoring' | 'ready' | 'stopping' | 'failed';

export interface Config {
  version: string;
  user: User | null;
  signup: boolean;
  first_user: boolean;
  setup_code_required: boolean;
  preview_domain: string;
  /** Bytes of the largest archive that becomes a project. */
  max_import: number;
  warnings: string[];
}

export interface User {
  id?: string;
  name: string;
  email?: string;
  admin?: boolean;
}

export interface Template {
  name: string;
  title: string;
  language: string;
  description: string;
  available: boolean;
  why_not: string | null;
}

export interface Server {
  state: ServerState;
  reason?: string | null;
  since?: string | null;
  percent?: number | null;
  message?: string | null;
}

export interface Member {
  name: string;
  role: Role;
}

export interface Project {
  id: string;
  title: string;
  template: string | null;
  visibility: 'private' | 'public';
  role: Role;
  owner: { name: string };
  members?: Member[];
  created: string;
  updated: string;
  last_activity?: string | null;
  server: Server;
  urls: { ide: string; preview: string; base: string };
  settings?: { public_ports?: number[]; embed_origins?: string[]; wake?: boolean };
}

export interface Token {
  id: string;
  note: string;
  scopes: string[];
  expires: string | null;
  created?: string;
  last_used?: string | null;
  token?: string;
}

export interface Invite {
  code: string;
  url: string;
  role: Role;
  expires: string;
}

export interface InviteInfo {
  project: { id: string; title: string };
  role: Role;
  inviter: string | { name: string };
  expires: string;
}

export interface Entry {
  name: string;
  path: string;
  type: 'file' | 'directory' | 'notebook';
  size?: number | null;
  mimetype?: string | null;
  format?: string | null;
  writable?: boolean;
  last_modified?: string;
  content?: unknown;
}

export interface Port {
  port: number;
  process?: string | null;
  main?: boolean;
}

export interface Durability {
  saved_seq?: number;
  durable_seq?: number;
  pending: boolean;
  last_error?: string | null;
  last_commit?: string | null;
}

export interface FileChange {
  path: string;
  kind: 'created' | 'modified' | 'deleted' | 'moved';
  to?: string;
}

/** One version of a file: it ends with the journal's record `seq`. Nobody in `people`: a program changed it. */
export interface Version {
  seq: number;
  time: string;
  people: string[];
  kind: 'changed' | 'deleted';
  size: number | null;
  checkpoint: string | null;
}

export interface VersionPage {
  versions: Version[];
  more: boolean;
}

/** A state of the whole project that is kept: by name, or automatically. */
export interface Checkpoint {
  name: string;
  seq: number;
  time: string;
  by?: string | null;
  auto?: boolean;
}

export interface Restored {
  restored: number;
  deleted: number;
  /** The state before it, as a checkpoint. */
  checkpoint: Checkpoint | null;
}
