// What browsers have and TypeScript's DOM library leaves out.

interface FileSystemSyncAccessHandle {
  read(bytes: AllowSharedBufferSource, options?: { at?: number }): number;
  write(bytes: AllowSharedBufferSource, options?: { at?: number }): number;
  truncate(size: number): void;
  getSize(): number;
  flush(): void;
  close(): void;
}

interface WorkerNavigator {
  /** GiB, roughly; some browsers tell, over https. */
  readonly deviceMemory?: number;
}

interface FileSystemFileHandle {
  createSyncAccessHandle(): Promise<FileSystemSyncAccessHandle>;
  /** Renames, over a file of that name if there is one. */
  move(name: string): Promise<void>;
}

/** What it gives stands wherever a text does. */
interface TrustedTypePolicy {
  createScriptURL(url: string): string;
}

declare var trustedTypes: undefined | {
  createPolicy(name: string, rules: { createScriptURL: (url: string) => string }): TrustedTypePolicy;
};
