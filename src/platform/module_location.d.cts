// Type of module_location.cjs: the absolute path of the folder that it lies in.
export const moduleDirectory: string;
